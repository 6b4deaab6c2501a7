#!/usr/bin/env bash
# The two images every embedded cluster needs: localhost/pause:1, which holds a
# pod's namespaces open, and localhost/pgherd-busybox:1, a shell for the volume
# provisioner's helper pods and for tests.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$HERE/image-lib.sh"

pause_image() {
  local root=$TMP/pause
  mkdir -p "$root"
  # Waits for ever, reaps what its pod orphans, ends on SIGTERM.
  gcc -Os -s -static -x c -o "$root/pause" - <<'C'
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
static void end(int s) { (void)s; _exit(0); }
static void reap(int s) { (void)s; while (waitpid(-1, 0, WNOHANG) > 0); }
int main(void) {
  signal(SIGTERM, end);
  signal(SIGINT, end);
  signal(SIGCHLD, reap);
  for (;;) pause();
}
C
  layer_of "$root" "$TMP/pause.tar"
  docker_archive "$IMAGES/pause.tar" localhost/pause:1 '{"User": "65535:65535", "Entrypoint": ["/pause"]}' "$TMP/pause.tar"
}

busybox_image() {
  add_basics "$TMP/busybox"
  add_busybox "$TMP/busybox"
  layer_of "$TMP/busybox" "$TMP/busybox.tar"
  docker_archive "$IMAGES/busybox.tar" localhost/pgherd-busybox:1 \
    '{"Cmd": ["sh"], "Env": ["PATH=/bin"]}' "$TMP/busybox.tar"
}

main() {
  mkdir -p "$IMAGES"
  TMP=$(mktemp -d "$IMAGES/.tmp.XXXXXX")
  trap 'rm -rf "$TMP"' EXIT
  build_once "$IMAGES/pause.tar" "${BASH_SOURCE[0]}" "$HERE/image-lib.sh" -- pause_image
  build_once "$IMAGES/busybox.tar" "${BASH_SOURCE[0]}" "$HERE/image-lib.sh" /bin/busybox -- busybox_image
}

main
