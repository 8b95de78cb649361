#!/usr/bin/env bash
# Build the real image with the real lock, test it, build it again and compare digests, all in a folder that is removed.
# Where that is not possible it prints what was skipped; with REQUIRE_IMAGE=1 it fails instead.
# usage: tests/image/run.sh PYTHON [PYTEST_ARGUMENT...]
set -euo pipefail
cd "$(dirname "$0")/../.."
python=$1
NEEDED_GB=25
TOOLS=(podman runc mmdebstrap)

skip() {
  echo "skipped: the image was neither built nor tested, because $1" >&2
  if [ "${REQUIRE_IMAGE:-0}" = 0 ]; then exit 0; else exit 3; fi
}

have_tools() { for tool in "${TOOLS[@]}"; do command -v "$tool" >/dev/null || return 1; done; }

install_tools() {
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || skip "only root with apt can install ${TOOLS[*]} here"
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${TOOLS[@]}"; } \
    >/dev/null || skip "apt could not install ${TOOLS[*]}"
}

# Images, containers, locks and temporary files in one folder: the machine's own podman storage is not touched.
private_storage() {
  mkdir -p .nox && scratch=$(realpath "$(mktemp -d .nox/image.XXXXXX)")
  trap remove_storage EXIT
  mkdir "$scratch/tmp"
  printf '[storage]\ndriver = "overlay"\ngraphroot = "%s/graph"\nrunroot = "%s/run"\n' "$scratch" "$scratch" >"$scratch/storage.conf"
  # Settings that work without systemd and with few rights, as inside a CI container.
  cat >"$scratch/containers.conf" <<END
[containers]
default_ulimits = ["nofile=16384:16384", "nproc=16384:16384"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
runtime = "runc"
tmp_dir = "$scratch/libpod"
END
  export CONTAINERS_STORAGE_CONF=$scratch/storage.conf CONTAINERS_CONF=$scratch/containers.conf
  export BUILDAH_ISOLATION=chroot TMPDIR=$scratch/tmp
}

remove_storage() {
  local mount
  awk -v under="$scratch/" 'index($2, under) == 1 { print $2 }' /proc/mounts | sort -r |
    while read -r mount; do umount "$mount" || true; done
  rm -rf "$scratch"
}

# Pull the root image, or build a stand-in for it: the same Debian release from its packages.
make_root() {
  if [ -n "${ROOT_IMAGE:-}" ] || timeout 300 podman pull -q "$(docker/image.sh root_image)" >/dev/null 2>&1; then return; fi
  echo "cannot pull $(docker/image.sh root_image): building a stand-in with mmdebstrap" >&2
  mmdebstrap --quiet --variant=minbase --include=ca-certificates bookworm "$scratch/root.tar"
  podman import --quiet "$scratch/root.tar" localhost/stand-in:bookworm >/dev/null
  rm "$scratch/root.tar"
  export ROOT_IMAGE=localhost/stand-in:bookworm
}

# A pip.conf with a marker in it: a test searches the image for that marker.
mark_secret() {
  cat "${PIP_CONFIG_FILE:-/etc/pip.conf}" >"$scratch/pip.conf" 2>/dev/null || true
  echo "# $MARK" >>"$scratch/pip.conf"
  export PIP_CONFIG_FILE=$scratch/pip.conf
}

have_tools || install_tools
free=$(df --output=avail -BG . | tr -dc '0-9\n' | tail -n 1)
[ "$free" -ge $NEEDED_GB ] || skip "it needs $NEEDED_GB GB of disk and $free GB are free"
private_storage
export IMAGE=localhost/vicuna-p100:test MARK=secret-$$-$RANDOM
make_root
mark_secret
docker/image.sh build
"$python" -m pytest tests/image "${@:2}"
# podman 4.3 sometimes leaves behind a container that it no longer lists; verify must work in spite of one.
podman create --network none "$IMAGE" >/dev/null
docker/image.sh verify
