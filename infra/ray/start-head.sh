#!/bin/sh
# Start a Ray head that demands a token, and wait; Ctrl+C or SIGTERM ends it with all its processes.
# Further arguments go to `ray start`, as --num-cpus 4 or --dashboard-host 0.0.0.0.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
# Jobs are started as `python`, which has to be the one that nurie is installed for.
PATH="$root/.venv/bin:$PATH"
export PATH

token_file=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}
if [ -z "${RAY_AUTH_TOKEN:-}" ] && [ ! -s "$token_file" ]; then
    echo "no token: without one, everybody who reaches this head can run code on it." >&2
    echo "make one with:  (umask 077; ray get-auth-token --generate)" >&2
    exit 2
fi

export RAY_AUTH_MODE=token
export RAY_USAGE_STATS_ENABLED=0
# A dead HTTP proxy is replaced after about 5 s instead of 30 s.
export RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S=1
export RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S=2
# A busy machine may need longer than 5 s to start one.
export RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S=60

exec ray start --head --block --dashboard-host 127.0.0.1 "$@"
