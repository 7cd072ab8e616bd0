#!/bin/sh
# A picture of a whole page, to look at the report: needs Chromium and nothing else.
#   tools/screenshot.sh report.html out.png [width: 1280] [scheme: light|dark] [height: 5000]
set -eu
[ $# -ge 2 ] || { sed -n '2,3s/^# *//p' "$0" >&2; exit 2; }
page=$(realpath "$1") out=$(realpath "$2") width=${3:-1280} scheme=${4:-light} height=${5:-5000}
case $scheme in
  light) preferred=1 ;;
  dark) preferred=0 ;;
  *) echo "$0: scheme '$scheme' is not light or dark" >&2; exit 2 ;;
esac
browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome) || {
  echo "$0: no Chromium found; install it (apt-get install chromium)" >&2; exit 2
}
profile=$(mktemp -d)
trap 'rm -rf "$profile"' EXIT
# windows narrower than 500 pixels do not exist: a frame of the page's own width does
cat > "$profile/frame.html" <<HTML
<!doctype html><meta name="color-scheme" content="light dark">
<style>html,body{margin:0}iframe{border:0;display:block;width:${width}px;height:${height}px}</style>
<iframe src="file://$page"></iframe>
HTML
"$browser" --headless --no-sandbox --disable-gpu --disable-quic --no-first-run \
  --disable-background-networking --disable-component-update --disable-sync \
  --allow-file-access-from-files --hide-scrollbars \
  --blink-settings=preferredColorScheme=$preferred --user-data-dir="$profile/user" \
  --window-size="$width,$height" --screenshot="$out" "file://$profile/frame.html" 2>"$profile/log" ||
  { cat "$profile/log" >&2; exit 1; }
echo "$out"
