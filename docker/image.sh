#!/usr/bin/env bash
# Behind `make image`, `make shell`, `make run-<target>` and the like: docker or podman, whichever answers.
set -euo pipefail
cd "$(dirname "$0")/.."

IMAGE=${IMAGE:-vicuna-p100}
TITLE=vicuna-p100 # the label that every stage of docker/Dockerfile carries
# The day of torch 2.0.1 instead of now, so that the same inputs give the same digest. A commit's time would not do: a
# layer from the cache keeps the time of the commit that it was built at.
EPOCH=1683504000

say() { echo "$*" >&2; }
die() { say "error: $1"; exit "${2:-1}"; }

# A docker client without its daemon is common, so it has to answer, not only be there.
find_engine() {
  local name
  for name in docker podman; do
    if "$name" info >/dev/null 2>&1; then echo "$name"; return; fi
  done
  die "found neither a docker whose daemon answers nor podman, need one of them to build or run the image: install podman (or docker) or start the daemon" 3
}

# ROOT_IMAGE, or the first root image of docker/pins.toml, by digest where one is pinned there.
root_image() {
  if [ -n "${ROOT_IMAGE:-}" ]; then echo "$ROOT_IMAGE"; return; fi
  awk -F'"' '/^\[\[root_image\]\]/ { n++ } n == 1 && /^(name|digest) *=/ { printf "%s%s", sep, $2; sep = "@" }' docker/pins.toml
}

digest_of_root() {
  "$engine" image inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' "$1" | sed -n 's/.*@\(sha256:[0-9a-f]*\)$/\1/p' | head -n 1
}

revision() {
  local commit
  commit=$(git rev-parse HEAD 2>/dev/null) || { echo unknown; return; }
  [ -z "$(git status --porcelain -- Makefile LICENSE recipe docker .dockerignore)" ] || commit+=-modified
  echo "$commit"
}

image_id() { "$engine" image inspect --format '{{.Id}}' "$IMAGE"; }

# build [engine's own flags]
build() {
  local root root_digest args
  root=$(root_image)
  "$engine" image inspect "$root" >/dev/null 2>&1 || "$engine" pull "$root" >&2 ||
    die "cannot pull the root image $root: name one that your registry has, as in make image ROOT_IMAGE=<name>"
  root_digest=$(digest_of_root "$root")
  say "root image: $root"
  case $root in *@sha256:*) ;; *) say "its digest: ${root_digest:-none, the image was made here} (as ROOT_IMAGE=NAME@DIGEST it is pinned)" ;; esac
  # Labels from here and not from the Dockerfile: podman's cache takes LABEL "$REVISION" for the same whatever its value.
  args=(--build-arg "ROOT_IMAGE=$root" --label "org.opencontainers.image.base.name=$root"
    --label "org.opencontainers.image.base.digest=$root_digest" --label "org.opencontainers.image.revision=$(revision)"
    --label "vicuna-p100.lock.sha256=$(sha256sum docker/requirements.lock | cut -d' ' -f1)")
  if [ "$engine" = docker ]; then
    export DOCKER_BUILDKIT=1
    args+=(--build-arg "SOURCE_DATE_EPOCH=$EPOCH")
  else
    args+=(--timestamp "$EPOCH")
  fi
  local ca=${PIP_CERT:-${SSL_CERT_FILE:-}} conf=${PIP_CONFIG_FILE:-/etc/pip.conf}
  if [ -f "$ca" ]; then args+=(--secret "id=ca,src=$ca"); fi
  if [ -f "$conf" ]; then args+=(--secret "id=pip_conf,src=$conf"); fi
  "$engine" build "${args[@]}" "$@" --file docker/Dockerfile --tag "$IMAGE" . >&2
  echo "$IMAGE $(image_id), $(("$("$engine" image inspect --format '{{.Size}}' "$IMAGE")" / 1000000)) MB"
}

# The image of this tree, built again from nothing. What is there goes first, but only to make room: the second build
# takes nothing of it, and engines refuse where a container has it, sometimes one that they forgot to free.
verify() {
  local first second
  build
  first=$(image_id)
  { "$engine" image rm "$IMAGE" && "$engine" image prune --force --filter "label=org.opencontainers.image.title=$TITLE"; } \
    >/dev/null || say "not all of $IMAGE could be removed, so the disk holds both while it is built again"
  build --no-cache
  second=$(image_id)
  [ "$first" = "$second" ] || die "two builds of the same tree differ: $first and $second; a package of the root image's archive may have changed between them"
  echo "same digest twice: $first"
}

# A registry forgets, a file does not.
save() {
  local file pack=(gzip -n -1) ending=gz
  need_image
  if command -v zstd >/dev/null; then pack=(zstd -q -T0) ending=zst; fi
  file=$TITLE-$(revision | cut -c1-12).tar.$ending
  mkdir -p dist
  "$engine" save "$IMAGE" | "${pack[@]}" >"dist/$file.partial" ||
    { rm -f "dist/$file.partial"; die "the image could not be saved as dist/$file: free some disk and try again"; }
  mv "dist/$file.partial" "dist/$file"
  (cd dist && sha256sum "$file" | tee "$file.sha256")
  say "load it with: $engine load --input dist/$file"
}

need_image() {
  "$engine" image inspect "$IMAGE" >/dev/null 2>&1 || die "found no image $IMAGE: run make image first, or load a tarball of make image-save"
}

# in_container FLAG... -- ARGUMENT...: the mounts, the card where there is one, and no more rights than that.
in_container() {
  local flags=() folder
  while [ "$1" != -- ]; do flags+=("$1"); shift; done
  shift
  need_image
  flags+=(--rm --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges --security-opt label=disable)
  for folder in weights data runs; do
    mkdir -p "$folder"
    flags+=(--volume "$PWD/$folder:/workspace/$folder")
  done
  # What it writes belongs to who called; rootless podman has to be told to keep that number.
  flags+=(--user "$(id -u):$(id -g)")
  if [ "$engine" = podman ] && [ "$(id -u)" != 0 ]; then flags+=(--userns keep-id); fi
  if [ -e /dev/nvidiactl ] || command -v nvidia-smi >/dev/null; then
    if [ "$engine" = docker ]; then flags+=(--gpus all); else flags+=(--device nvidia.com/gpu=all); fi
  else
    say "no NVIDIA driver on this machine: running on the CPU"
  fi
  if [ -t 0 ] && [ -t 1 ]; then flags+=(--tty); fi
  flags+=(--stop-timeout 900) # a stage that is asked to stop finishes its optimizer step, which takes minutes on a P100
  exec "$engine" run --interactive "${flags[@]}" "$IMAGE" "$@"
}

# run TARGET [VARIABLE=VALUE...]
run() {
  local flags=() variable config
  case $1 in fetch | demo) ;; *) flags+=(--network none) ;; esac # only these two download
  for variable in "${@:2}"; do
    config=${variable#CONFIG=}
    # A config of this machine, shipped or one's own, instead of the image's; without one the stage says what is wrong.
    if [ "$config" != "$variable" ] && [ -f "$config" ]; then
      case $config in
        /*) flags+=(--volume "$config:$config:ro") ;;
        *) flags+=(--volume "$PWD/$config:/workspace/$config:ro") ;;
      esac
    fi
  done
  in_container "${flags[@]}" -- "$@"
}

shell() { in_container --entrypoint /bin/bash --; }

case ${1:-} in
  build | verify | save | run | shell | root_image)
    engine=$(find_engine)
    "$@"
    ;;
  *) die "found '${1:-}', expected build, verify, save, shell or run TARGET" 2 ;;
esac
