#!/usr/bin/env bash
# The real Dockerfile with the real lock: built, tried, built again, compared; all of it in a folder that is removed.
# Where that is not possible it says what was skipped, and REQUIRE_IMAGE=1 makes it a failure.
# usage: tests/image/run.sh PYTHON [pytest's arguments]
set -euo pipefail
cd "$(dirname "$0")/../.."
python=$1
NEEDED_GB=25
TOOLS=(podman runc mmdebstrap)

skip() {
  echo "skipped: the image was neither built nor tried, since $1" >&2
  if [ "${REQUIRE_IMAGE:-0}" = 0 ]; then exit 0; else exit 3; fi
}

have_tools() { for tool in "${TOOLS[@]}"; do command -v "$tool" >/dev/null || return 1; done; }

install_tools() {
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || skip "only root with apt can install ${TOOLS[*]} here"
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${TOOLS[@]}"; } \
    >/dev/null || skip "apt could not install ${TOOLS[*]}"
}

# Images, containers, locks and temporary files in one folder: nothing of the machine's own podman is touched.
private_storage() {
  mkdir -p .nox && scratch=$(realpath "$(mktemp -d .nox/image.XXXXXX)")
  trap remove_storage EXIT
  mkdir "$scratch/tmp"
  printf '[storage]\ndriver = "overlay"\ngraphroot = "%s/graph"\nrunroot = "%s/run"\n' "$scratch" "$scratch" >"$scratch/storage.conf"
  # What works without systemd and with few rights, as in a container of a CI.
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

# A registry's root image, or a Debian of the same release made from packages.
make_root() {
  if [ -n "${ROOT_IMAGE:-}" ] || timeout 300 podman pull -q "$(docker/image.sh root_image)" >/dev/null 2>&1; then return; fi
  echo "no registry answers: mmdebstrap makes a stand-in for $(docker/image.sh root_image)" >&2
  mmdebstrap --quiet --variant=minbase --include=ca-certificates bookworm "$scratch/root.tar"
  podman import --quiet "$scratch/root.tar" localhost/stand-in:bookworm >/dev/null
  rm "$scratch/root.tar"
  export ROOT_IMAGE=localhost/stand-in:bookworm
}

# A pip.conf with a mark in it: the tests look for the mark in the image.
mark_secret() {
  cat "${PIP_CONFIG_FILE:-/etc/pip.conf}" >"$scratch/pip.conf" 2>/dev/null || true
  echo "# $MARK" >>"$scratch/pip.conf"
  export PIP_CONFIG_FILE=$scratch/pip.conf
}

have_tools || install_tools
free=$(df --output=avail -BG . | tr -dc '0-9\n' | tail -n 1)
[ "$free" -ge $NEEDED_GB ] || skip "it needs $NEEDED_GB GB of disk while it works and $free GB are free"
private_storage
export IMAGE=localhost/vicuna-p100:test MARK=secret-$$-$RANDOM
make_root
mark_secret
docker/image.sh build
"$python" -m pytest tests/image "${@:2}"
# podman 4.3 sometimes leaves a container behind that it no longer lists; verify has to go on beside one.
podman create --network none "$IMAGE" >/dev/null
docker/image.sh verify
