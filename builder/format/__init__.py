"""What lies on disk and on the wire. Ships inside images: standard library, Python 3.10."""
