#!/usr/bin/env bash
# Installs what the system tests need and pip cannot give, through apt where it may; otherwise says what is missing.
set -euo pipefail

missing=()
command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
  || missing+=(chromium)

command -v bwrap >/dev/null || missing+=(bubblewrap)
command -v cmake >/dev/null || missing+=(cmake) # compiles ALFWorld's planner, as do these two
{ command -v g++ && command -v make; } >/dev/null || missing+=(build-essential)
[ -d /usr/share/wordnet ] || missing+=(wordnet-base)

[ "${#missing[@]}" -gt 0 ] || exit 0

as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo -n)
if command -v apt-get >/dev/null && "${as_root[@]}" true 2>/dev/null; then
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
else
  echo "not installed: ${missing[*]}; the tests that need them are skipped. Install them with your package manager."
fi
