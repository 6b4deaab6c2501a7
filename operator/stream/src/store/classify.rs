//! From the SDK's errors to [`StoreError`]: which of credentials, bucket, network or TLS it was.

use std::{error::Error, io};

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use super::{credentials::CredentialsFileError, error::StoreError};

/// What a request was about, for the error.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'a> {
    pub(super) endpoint: &'a str,
    pub(super) bucket: &'a str,
    /// Like `PUT`.
    pub(super) verb: &'static str,
    /// The key or prefix.
    pub(super) key: &'a str,
}

impl Request<'_> {
    fn what(&self) -> String {
        format!("{} {}/{}", self.verb, self.bucket, self.key)
    }
}

/// The HTTP status of the store's answer, if it answered.
pub(super) fn status<E>(error: &SdkError<E, HttpResponse>) -> Option<u16> {
    error.raw_response().map(|response| response.status().as_u16())
}

/// Tells what went wrong.
pub(super) fn classify<E>(request: Request<'_>, error: SdkError<E, HttpResponse>) -> StoreError
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    let status = status(&error);
    if let (SdkError::ServiceError(context), Some(status)) = (&error, status) {
        return classify_answer(request, status, context.err());
    }
    if let Some(file) = find_cause::<CredentialsFileError>(&error) {
        let source = io::Error::new(file.source.kind(), file.source.to_string());
        return StoreError::CredentialsFile { path: file.path.clone(), source };
    }
    let endpoint = request.endpoint.to_owned();
    let reason = render_innermost(&error);
    let tls = find_cause::<rustls::Error>(&error).is_some() || reason.contains("certificate");
    let source = Box::new(error);
    if tls {
        return StoreError::Tls { endpoint, reason, source };
    }
    StoreError::Unreachable { endpoint, what: request.what(), reason, source }
}

fn classify_answer(request: Request<'_>, status: u16, error: &impl ProvideErrorMetadata) -> StoreError {
    let code = error.code().map_or_else(|| status.to_string(), str::to_owned);
    match code.as_str() {
        "NoSuchBucket" => StoreError::NoSuchBucket(request.bucket.to_owned()),
        "NoSuchKey" => StoreError::NoSuchObject(request.key.to_owned()),
        _ if matches!(status, 401 | 403) => StoreError::WrongCredentials { what: request.what(), code },
        // The last is versitygw's for an unknown key, with 404.
        "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "InvalidToken" | "ExpiredToken" | "XAdminUserNotFound" => {
            StoreError::WrongCredentials { what: request.what(), code }
        }
        _ => {
            let message = error.message().unwrap_or("no message").chars().take(300).collect();
            let passing = may_pass(status, &code);
            StoreError::Other { what: request.what(), code, message, passing }
        }
    }
}

/// An answer that says nothing about the next one. The last four are of a body that was another one when it arrived, or stopped coming.
fn may_pass(status: u16, code: &str) -> bool {
    let of_store =
        ["SlowDown", "SlowDownRead", "SlowDownWrite", "InternalError", "ServiceUnavailable", "OperationAborted"];
    let of_body = ["BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "RequestTimeout"];
    matches!(status, 429 | 500 | 502 | 503 | 504) || of_store.contains(&code) || of_body.contains(&code)
}

/// Walks the causes, also through `io::Error`, whose `source()` skips the error that it wraps.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| {
        let error = *error;
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        match wrapped {
            Some(inner) => Some(inner as &(dyn Error + 'static)),
            None => error.source(),
        }
    })
}

fn find_cause<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    causes(error).find_map(|cause| cause.downcast_ref::<T>())
}

fn render_innermost(error: &(dyn Error + 'static)) -> String {
    let said = causes(error).last().map(ToString::to_string).unwrap_or_default();
    // rustls sends whoever reads a connection's unexpected end to its manual for programmers.
    let said = said.split_once(": https://docs.rs/").map_or(said.as_str(), |(said, _)| said);
    said.chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_by_itself_is_told_from_what_somebody_must_change() {
        for (status, code) in
            [(503, "SlowDown"), (500, "500"), (200, "InternalError"), (400, "BadDigest"), (429, "429")]
        {
            assert!(may_pass(status, code), "{status} {code}");
        }
        for (status, code) in [
            (400, "InvalidRequest"),
            (404, "NoSuchUpload"),
            (416, "InvalidRange"),
            (501, "NotImplemented"),
            (507, "507"),
        ] {
            assert!(!may_pass(status, code), "{status} {code}");
        }
    }

    #[test]
    fn a_connection_that_ends_is_no_matter_for_a_manual() {
        let told =
            "peer closed connection without sending TLS close_notify: https://docs.rs/rustls/latest/#unexpected-eof";
        let error = io::Error::new(io::ErrorKind::UnexpectedEof, io::Error::other(told));
        assert_eq!(render_innermost(&error), "peer closed connection without sending TLS close_notify");
    }
}
