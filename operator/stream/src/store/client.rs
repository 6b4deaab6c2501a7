//! The S3 client: ring-only HTTPS, timeouts, retries with jitter, no checksum trailers that older stores refuse.

use std::{path::PathBuf, time::Duration};

use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_s3::{
    Client,
    config::{
        BehaviorVersion, IdentityCache, Region, RequestChecksumCalculation, ResponseChecksumValidation,
        StalledStreamProtectionConfig, retry::RetryConfig, timeout::TimeoutConfig,
    },
};
use aws_smithy_http_client::{
    Builder,
    tls::{self, TlsContext, rustls_provider::CryptoMode},
};
use pgherd_core::backup::StoreConfig;

use super::{credentials::FileCredentials, error::StoreError, trust::build_trust_store};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// One attempt of one request: a part of 8 MiB at 100 kB/s still fits.
pub(super) const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(120);
/// All attempts of one request.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(600);
const ATTEMPTS: u32 = 6;

/// Builds the client; nothing is sent.
///
/// # Errors
/// [`StoreError::Config`] and [`StoreError::CredentialsFile`].
pub(super) fn build_client(config: &StoreConfig) -> Result<Client, StoreError> {
    validate_endpoint(&config.endpoint)?;
    if config.bucket.is_empty() || config.bucket.contains('/') {
        return Err(StoreError::Config(format!("\"{}\" is not a bucket name", config.bucket)));
    }
    let credentials = FileCredentials::new(PathBuf::from(&config.credentials_dir));
    // Unreadable files are told at once and by name, not at the first request.
    credentials.read()?;
    let context = TlsContext::builder()
        .with_trust_store(build_trust_store(config.ca_file.as_deref())?)
        .build()
        .map_err(|error| StoreError::Config(error.to_string()))?;
    let http = Builder::new().tls_provider(tls::Provider::Rustls(CryptoMode::Ring)).tls_context(context).build_https();
    let retries = RetryConfig::standard()
        .with_max_attempts(ATTEMPTS)
        .with_initial_backoff(Duration::from_millis(200))
        .with_max_backoff(Duration::from_secs(20));
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .operation_attempt_timeout(ATTEMPT_TIMEOUT)
        .operation_timeout(OPERATION_TIMEOUT)
        .build();
    let stalled =
        StalledStreamProtectionConfig::enabled().upload_enabled(false).grace_period(Duration::from_secs(30)).build();
    let settings = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .endpoint_url(config.endpoint.trim_end_matches('/'))
        .force_path_style(config.path_style)
        .region(Region::new(config.region.clone().unwrap_or_else(|| "us-east-1".to_owned())))
        .retry_classifier(credentials.clone())
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .identity_cache(IdentityCache::no_cache())
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .retry_config(retries)
        .timeout_config(timeouts)
        .stalled_stream_protection(stalled)
        .http_client(http)
        .build();
    Ok(Client::from_conf(settings))
}

/// For a question whose answer must come soon: two attempts within ten seconds.
pub(super) fn shorten_patience(config: aws_sdk_s3::config::Builder) -> aws_sdk_s3::config::Builder {
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .operation_attempt_timeout(Duration::from_secs(6))
        .operation_timeout(Duration::from_secs(10))
        .build();
    config.retry_config(RetryConfig::standard().with_max_attempts(2)).timeout_config(timeouts)
}

fn validate_endpoint(endpoint: &str) -> Result<(), StoreError> {
    let error = || StoreError::Config(format!("the endpoint \"{endpoint}\" is not http(s)://host[:port]"));
    let rest = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://")).ok_or_else(error)?;
    let host = rest.trim_end_matches('/');
    let plain = !host.is_empty() && !host.contains(['/', '?', '#', '@', ' ']);
    if plain { Ok(()) } else { Err(error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_sdk_s3::presigning::PresigningConfig;

    #[test]
    fn an_endpoint_is_a_scheme_and_a_host() {
        for good in ["https://minio.minio.svc:9000", "http://127.0.0.1:9000/", "https://[::1]:9000"] {
            validate_endpoint(good).unwrap();
        }
        for bad in ["", "minio:9000", "s3://bucket", "https://", "https://user@host", "http://host/path"] {
            assert!(validate_endpoint(bad).is_err(), "{bad}");
        }
    }
    #[tokio::test]
    async fn the_bucket_is_in_the_path_or_in_the_host_and_a_region_need_not_be_named() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["accessKeyId", "secretAccessKey"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        for (path_style, region, begin, scope) in [
            (true, None, "https://store.example:9000/bucket/a/b?", "us-east-1"),
            (false, None, "https://bucket.store.example:9000/a/b?", "us-east-1"),
            (false, Some("eu-west-3"), "https://bucket.store.example:9000/a/b?", "eu-west-3"),
        ] {
            let client = build_client(&StoreConfig {
                endpoint: "https://store.example:9000".to_owned(),
                bucket: "bucket".to_owned(),
                prefix: String::new(),
                region: region.map(str::to_owned),
                path_style,
                credentials_dir: dir.path().to_str().unwrap().to_owned(),
                ca_file: None,
                encryption: None,
            });
            let hour = PresigningConfig::expires_in(Duration::from_secs(3600)).unwrap();
            let request = client.unwrap().get_object().bucket("bucket").key("a/b").presigned(hour).await.unwrap();
            let uri = request.uri();
            assert!(uri.starts_with(begin) && uri.contains(&format!("%2F{scope}%2Fs3%2F")), "{uri}");
        }
    }
}
