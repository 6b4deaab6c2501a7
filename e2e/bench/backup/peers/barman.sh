# shellcheck shell=bash
# barman-cloud: reads the data directory; snappy, two uploads at a time.
STORE=(--cloud-provider aws-s3 --endpoint-url https://localhost:9000)
version() { barman-cloud-backup --version; }
backup() {
  barman-cloud-backup "${STORE[@]}" --snappy --jobs 2 --immediate-checkpoint --name bench --host "$PGHOST" --user postgres \
    ${RATE:+--max-bandwidth "${RATE}KB"} s3://backups/barman bench
}
restore() { barman-cloud-restore "${STORE[@]}" s3://backups/barman bench bench "$RESTORED"; }
archive_command() {
  echo 'AWS_SHARED_CREDENTIALS_FILE=/work/keys/aws AWS_CA_BUNDLE=/work/tls/ca.crt barman-cloud-wal-archive' \
    '--cloud-provider aws-s3 --endpoint-url https://localhost:9000 --snappy s3://backups/barman bench %p'
}
