#!/usr/bin/env bash
# dpkg_database.sh FOLDER: mmdebstrap's hook that writes what dpkg would know of the packages
# whose files are unpacked into FOLDER. dpkg itself would run the programs in them, which are
# for another machine.
set -euo pipefail

database=$1/var/lib/dpkg
for package in "$1"/var/cache/apt/archives/*.deb; do
    name=$(dpkg-deb --field "$package" Package)
    { dpkg-deb --field "$package" && echo; } >>"$database/status"
    dpkg-deb --fsys-tarfile "$package" | tar --list | sed 's,^\.,,; s,/$,,' >"$database/info/$name.list"
done
