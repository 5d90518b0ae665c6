#!/bin/sh
# Runs in a container, by a busybox of its own: "user UID", "context CONTEXT", then for each folder "NAME READ WRITE", or
# "NAME none" if it is empty.
bb=/builder-probe/busybox
echo "user $($bb id -u)"
echo "context $($bb cat /proc/self/attr/current | $bb tr -d '\0')"
try() {
  file=$($bb find "$2" -type f -size +0 | $bb head -n 1)
  [ -n "$file" ] || { echo "$1 none"; return; }
  $bb cat "$file" >/dev/null 2>&1 && seen="read" || seen="unreadable"
  (echo x >>"$file") 2>/dev/null && write=written || write=denied
  echo "$1 $seen $write"
}
try layers /builder-layers
try models /builder-models
