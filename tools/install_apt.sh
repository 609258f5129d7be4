#!/bin/sh
# Installs the Debian packages named in the given list files, if any is missing; says nothing when all are there.
#   install_apt.sh LIST...
set -eu

if ! command -v dpkg-query >/dev/null; then
  echo "install_apt: no dpkg on this system; provide what $* name by other means" >&2
  exit 0
fi

missing=""
for package in $(sed 's/#.*//' "$@"); do
  status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$status" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -ne 0 ]; then
  echo "install_apt: missing Debian packages; run as root:  apt-get install --no-install-recommends$missing" >&2
  exit 1
fi

echo "install_apt: installing$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
# shellcheck disable=SC2086  # one word per package is meant
apt-get install -y -q --no-install-recommends $missing
