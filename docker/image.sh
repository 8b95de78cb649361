#!/usr/bin/env bash
# Behind `make image`, `make shell`, `make run-<target>` and the like. Uses docker, or podman where docker does not answer.
set -euo pipefail
cd "$(dirname "$0")/.."

IMAGE=${IMAGE:-vicuna-p100}
TITLE=vicuna-p100 # the title label that every stage of docker/Dockerfile carries
# A fixed build time (the release day of torch 2.0.1), so that the same inputs give the same digest. The commit's time
# would not work: a cached layer keeps the time of the commit at which it was built.
EPOCH=1683504000
SELINUX=${SELINUX:-/sys/fs/selinux/enforce} # exists where SELinux is on
NVIDIA_DEVICE=${NVIDIA_DEVICE:-/dev/nvidiactl} # exists where the NVIDIA driver is loaded

say() { echo "$*" >&2; }
die() { say "error: $1"; exit "${2:-1}"; }

# A docker client without a running daemon is common, so the engine has to answer, not only exist.
find_engine() {
  local name
  for name in docker podman; do
    if "$name" info >/dev/null 2>&1; then echo "$name"; return; fi
  done
  die "found neither a running docker daemon nor podman, expected one of them to build or run the image: install podman (or docker) or start the daemon" 3
}

# Print ROOT_IMAGE, or the first root image of docker/pins.toml with its digest if one is pinned.
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

# build [FLAG...]: build the image; the flags go to the engine.
build() {
  local root root_digest args
  root=$(root_image)
  "$engine" image inspect "$root" >/dev/null 2>&1 || "$engine" pull "$root" >&2 ||
    die "cannot pull the root image $root, expected one that your registry has: name it, as in make image ROOT_IMAGE=NAME"
  root_digest=$(digest_of_root "$root")
  say "root image: $root"
  case $root in *@sha256:*) ;; *) say "its digest: ${root_digest:-none, the image was built here} (ROOT_IMAGE=NAME@DIGEST pins it)" ;; esac
  # Labels are set here and not in the Dockerfile: podman's cache treats LABEL "$REVISION" as unchanged when its value changes.
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

# Build the image of this tree twice, the second time without cache, and compare digests. The first image is removed in
# between to free disk space; the second build uses nothing of it. Engines refuse to remove an image that a container
# uses, sometimes a container that they no longer list.
verify() {
  local first second
  build
  first=$(image_id)
  { "$engine" image rm "$IMAGE" && "$engine" image prune --force --filter "label=org.opencontainers.image.title=$TITLE"; } \
    >/dev/null || say "could not remove all of $IMAGE: the disk holds both builds for a while"
  build --no-cache
  second=$(image_id)
  [ "$first" = "$second" ] || die "two builds of the same tree differ, $first and $second, expected one digest: build again, since a package of the Debian archive may have changed between them"
  echo "same digest twice: $first"
}

# Export the image to a file, since registries delete old tags.
save() {
  local file pack=(gzip -n -1) ending=gz
  need_image
  if command -v zstd >/dev/null; then pack=(zstd -q -T0) ending=zst; fi
  file=$TITLE-$(revision | cut -c1-12).tar.$ending
  mkdir -p dist
  "$engine" save "$IMAGE" | "${pack[@]}" >"dist/$file.partial" ||
    { rm -f "dist/$file.partial"; die "could not save the image as dist/$file: free some disk space and try again"; }
  mv "dist/$file.partial" "dist/$file"
  (cd dist && sha256sum "$file" | tee "$file.sha256")
  say "load it with: $engine load --input dist/$file"
}

need_image() {
  "$engine" image inspect "$IMAGE" >/dev/null 2>&1 || die "found no image $IMAGE, expected one to run: run make image first, or load a tarball that make image-save wrote"
}

# bind SOURCE TARGET [readonly]: a --mount, since --volume cannot express a colon in a path.
bind() {
  case $1$2 in *[,\"]* | *$'\n'*) die "found a comma, a quote or a line break in $1, which a container mount cannot express: rename it" 2 ;; esac
  flags+=(--mount "type=bind,source=$1,target=$2${3:+,$3}")
}

# in_container ARGUMENT...: run the image with `flags`, the mounted folders, the GPU if there is one, and no further rights.
in_container() {
  local folder id
  need_image
  id=$(image_id) # podman writes it without its sha256:
  flags+=(--env "RECIPE_IMAGE=sha256:${id#sha256:}")
  flags+=(--rm --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges)
  # SELinux would deny access to the mounted folders; relabeling them would change the user's files.
  if [ -e "$SELINUX" ]; then flags+=(--security-opt label=disable); fi
  flags+=(--pids-limit 4096) # no memory limit: how much a stage needs depends on the model
  for folder in weights data runs results; do
    mkdir -p "$folder"
    bind "$PWD/$folder" "/workspace/$folder"
  done
  # Files that it writes belong to the caller; rootless podman needs keep-id for that.
  flags+=(--user "$(id -u):$(id -g)")
  if [ "$engine" = podman ] && [ "$(id -u)" != 0 ]; then flags+=(--userns keep-id); fi
  if [ -e "$NVIDIA_DEVICE" ] || command -v nvidia-smi >/dev/null; then
    if [ "$engine" = docker ]; then flags+=(--gpus all); else flags+=(--device nvidia.com/gpu=all); fi
  else
    say "found no NVIDIA driver on this machine: running on the CPU"
  fi
  if [ -t 0 ] && [ -t 1 ]; then flags+=(--tty); fi
  flags+=(--stop-timeout 900) # a stage that is told to stop finishes its optimizer step, which takes minutes on a P100
  exec "$engine" run --interactive "${flags[@]}" "$IMAGE" "$@"
}

# run TARGET [VARIABLE=VALUE...]: variables are set in the container's environment, which keeps every character.
run() {
  local flags=() variable config
  case $1 in
    setup | lock | test | bench | race | reproduce | claims | gpu-test | clean | image* | shell | run-*)
      die "found run-$1, expected a step of a run: the image holds no tests and no tools for developing; run make $1 outside the container" 2
      ;;
    fetch | weights | data | demo) # the only targets that download
      for variable in HF_TOKEN META_URL; do # secrets by name, so that no command line shows their value
        if [ -n "${!variable:-}" ]; then flags+=(--env "$variable"); fi
      done
      ;;
    serve) flags+=(--network host) ;;    # it listens on 127.0.0.1 alone, which must be this machine's
    *) flags+=(--network none) ;;
  esac
  for variable in "${@:2}"; do
    flags+=(--env "$variable")
    config=${variable#CONFIG=}
    # A config of this machine is mounted over the image's own. If there is no such file, the stage reports it.
    if [ "$config" != "$variable" ] && [ -f "$config" ]; then
      case $config in
        /*) bind "$config" "$config" readonly ;;
        *) bind "$PWD/$config" "/workspace/$config" readonly ;;
      esac
    fi
  done
  in_container "$1"
}

# shell: no network, unless NETWORK is set.
shell() {
  local flags=(--entrypoint /bin/bash)
  [ -n "${NETWORK:-}" ] || flags+=(--network none)
  in_container
}

case ${1:-} in
  build | verify | save | run | shell | root_image)
    engine=$(find_engine)
    "$@"
    ;;
  *) die "found '${1:-}', expected build, verify, save, shell or run TARGET" 2 ;;
esac
