#!/usr/bin/env bash
# Runs a command under a Docker engine of its own, in a network namespace without a way out, and removes both afterwards.
# For machines with root, Debian's packages and a Python index, but without a registry of images:
#
#   bash tests/containers/engine.sh pytest tests/containers
#
# The base image that the Dockerfile names is made of Debian's packages; what `pip install` asks for while the image is
# built is fetched before, and served on loopback. The files of the project are used as they are: an override, which
# compose reads through COMPOSE_FILE, adds the loopback network to the build and nothing else.
#
# TORCH and TORCHVISION (below) are the Dockerfile's pair, here of the build that the index has.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
work=$(mktemp -d /tmp/fedleak-engine.XXXXXX)
space=fedleak$$
started=()

stop() {
    set +e
    [ -f "$work/docker.pid" ] && kill "$(cat "$work/docker.pid")" && for _ in $(seq 100); do [ -e "$work/docker.pid" ] || break; sleep 0.2; done
    for process in "${started[@]}"; do kill "$process" 2> /dev/null; done
    ip netns del "$space" 2> /dev/null
    umount "$work"/exec/netns/* 2> /dev/null
    rm -rf "$work"
}
trap stop EXIT
say() { printf -- '-- engine: %s (%s s)\n' "$1" "$SECONDS"; }

say "Debian's packages"
needed=(docker.io iptables iproute2 mmdebstrap tini)
for package in "${needed[@]}"; do
    if ! dpkg -s "$package" > /dev/null 2>&1; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${needed[@]}" > "$work/apt.log" 2>&1 ||
            { tail -20 "$work/apt.log" >&2; exit 1; }
        break
    fi
done

say "the image's wheels"
pair() { sed -n "s/^ARG $1=//p" "$root/Dockerfile"; }
python3 -m venv "$work/venv"
"$work/venv/bin/pip" wheel -q -w "$work/wheels" "$root" hatchling "torch==$(pair TORCH)" "torchvision==$(pair TORCHVISION)" \
    > "$work/pip.log" 2>&1 || { tail -5 "$work/pip.log" >&2; exit 1; }
rm "$work"/wheels/fedleak-*

say "the base image"
base=$(sed -n 's/^FROM //p' "$root/Dockerfile")
mirror=$(awk '/^URIs:/ { print $2; exit }' /etc/apt/sources.list.d/debian.sources)
printf '[global]\nno-index = true\nfind-links = http://127.0.0.1:8766/\n' > "$work/pip.conf"
mmdebstrap -q --variant=minbase --include=python3,python3-pip,ca-certificates \
    --customize-hook='ln -s python3 "$1/usr/bin/python"; rm -f "$1"/usr/lib/python3.11/EXTERNALLY-MANAGED' \
    --customize-hook="copy-in $work/pip.conf /etc" bookworm "$work/base.tar" "$mirror" 2> "$work/base.log" ||
    { tail -5 "$work/base.log" >&2; exit 1; }

say "dockerd"
export DOCKER_HOST="unix://$work/docker.sock"
ip netns add "$space"
ip -n "$space" link set lo up
nsenter --net="/run/netns/$space" dockerd --data-root "$work/data" --exec-root "$work/exec" -p "$work/docker.pid" \
    -H "$DOCKER_HOST" > "$work/dockerd.log" 2>&1 &
for _ in $(seq 120); do docker version > /dev/null 2>&1 && break; sleep 0.5; done
docker version > /dev/null || { tail -20 "$work/dockerd.log" >&2; exit 1; }
docker import -c 'CMD ["python3"]' "$work/base.tar" "$base" > /dev/null
rm "$work/base.tar"
nsenter --net="/run/netns/$space" python3 -m http.server 8766 --bind 127.0.0.1 -d "$work/wheels" > /dev/null 2>&1 &
started+=($!)

printf 'services:\n  ownership: {build: {network: host}}\n' > "$work/override.yml"
export COMPOSE_FILE="docker-compose.yml:$work/override.yml"
say "$*"
"$@"
