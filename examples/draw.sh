#!/usr/bin/env bash
# Draws a picture over the HTTP API with curl: asks, waits for the end of the job's event stream, saves the picture.
# Usage: examples/draw.sh [PROMPT]. DARKROOM_URL is the address, DARKROOM_API_KEY a key; an open chatroom needs none.
set -euo pipefail
url=${DARKROOM_URL:-http://127.0.0.1:8189}
key=(${DARKROOM_API_KEY:+-H "Authorization: Bearer $DARKROOM_API_KEY"})
prompt=${1:-a lighthouse at dusk}

request=$(printf '%s' "$prompt" | python3 -c 'import json, sys; print(json.dumps({"prompt": sys.stdin.read(), "count": 1}))')
job=$(curl -sS --fail-with-body "${key[@]}" -H 'Content-Type: application/json' -d "$request" "$url/api/jobs" |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["id"])')
end=$(curl -sSN "${key[@]}" "$url/api/jobs/$job/events" |
    sed -nE 's/^event: (finished|failed|cancelled|deleted)\r?$/\1/p' | head -n 1)
[ "$end" = finished ] || { echo "draw.sh: the job is $end" >&2; exit 1; }
curl -sS --fail-with-body "${key[@]}" -o "$job-1.png" "$url/api/jobs/$job/pictures/1.png"
echo "$job-1.png"
