"""Reading chunks once, for the command line and for the image. Standard library, obstore and awscrt; Python 3.10.

checksum    CRC64NVME: of bytes, of pieces, of files from their chunks
source      where objects come from: a folder, S3, GCS, Azure, HTTP; one whole object per read
retry       deadline per object, bounded back-off with jitter, around any source
manifests   a reference to a digest, a digest to a manifest
journal     which chunks of a half-written folder are on disk
restore     a manifest to plain files: locked, resumable, verified, renamed when complete
check       a restored folder against its manifest, and repair of what is bad
"""
