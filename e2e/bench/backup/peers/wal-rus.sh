# shellcheck shell=bash
# WAL-RUS, streaming by BASE_BACKUP as pgherd does; zstd. It trusts what SSL_CERT_FILE names, and knows credentials from the
# environment only.
walrus() (
  . /work/keys/env
  export SSL_CERT_FILE=/work/tls/ca.crt AWS_ENDPOINT_URL=https://localhost:9000 AWS_S3_FORCE_PATH_STYLE=true AWS_REGION=us-east-1
  export WALG_S3_PREFIX=s3://backups/wal-rus WALG_COMPRESSION_METHOD=zstd
  exec walrus "$@"
)
version() { command walrus --version; }
backup() { walrus backup-push; }
restore() {
  mkdir -m 0700 "$RESTORED"
  walrus backup-fetch "$RESTORED" LATEST
}
push() { walrus wal-push "/work/data/$SEGMENT"; }
archive_command() { echo 'SEGMENT=%p bash /opt/peers/call.sh wal-rus push'; }
