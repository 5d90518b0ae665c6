"""What `builder.node.verify` checks, one concern a file; each audit adds its findings, and none hides another."""
