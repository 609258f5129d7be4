#!/bin/sh
# Collects what a machine without a network or Debian packages needs to build outrider: the header-only third parties
# and GoogleTest's sources. Everything comes from the installed packages of packaging/apt.txt.
#   gpu_pack.sh FOLDER
set -eu

folder=$1
rm -rf "$folder"
mkdir -p "$folder/include"
cp -r /usr/include/nlohmann /usr/include/tl /usr/include/fmt "$folder/include/"
cp /usr/include/xxhash.h /usr/include/xxh3.h "$folder/include/"
cp -r /usr/src/googletest "$folder/googletest"
rm -rf "$folder/googletest/googletest/test" "$folder/googletest/googlemock/test"
echo "gpu-pack: $(du -sh "$folder" | cut -f1) in $folder"
