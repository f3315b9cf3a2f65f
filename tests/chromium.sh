#!/bin/sh
# The report is tested in a real browser. Installs Debian's Chromium where that is possible, else says what to do.
command -v chromium >/dev/null 2>&1 && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null && exit 0
fi
echo "Chromium is missing: the browser tests will be skipped. Remedy: apt-get install chromium" >&2
