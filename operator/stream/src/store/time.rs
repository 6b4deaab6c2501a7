//! The store's own clock, by which it says when an object was written. No other clock is compared with that: a node whose own is ahead
//! would take what is alive for dead, and delete it.

use std::sync::{Arc, OnceLock};

use aws_sdk_s3::{
    config::{ConfigBag, Intercept, RuntimeComponents, interceptors::BeforeDeserializationInterceptorContextRef},
    error::BoxError,
};
use jiff::{Timestamp, fmt::rfc2822::DateTimeParser};

use super::{ObjectStore, StoreError, classify::classify};

static PARSER: DateTimeParser = DateTimeParser::new();

/// Keeps the `Date` of the first answer. One of a later attempt would be no nearer to a listing that was made before.
#[derive(Clone, Debug, Default)]
struct DateReader(Arc<OnceLock<Timestamp>>);

impl Intercept for DateReader {
    fn name(&self) -> &'static str {
        "DateReader"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = context.response().headers().get("date");
        if let Some(time) = date.and_then(|date| PARSER.parse_timestamp(date).ok()) {
            let _first_wins = self.0.set(time);
        }
        Ok(())
    }
}

impl ObjectStore {
    /// Now, by the store's clock, in whole seconds.
    ///
    /// # Errors
    /// [`StoreError`]; also when the store's answer has no `Date`: then the age of nothing is known.
    pub async fn observe_time(&self) -> Result<Timestamp, StoreError> {
        let reader = DateReader::default();
        let request = self.client.list_objects_v2().bucket(&self.bucket).max_keys(1);
        let answer = request.customize().interceptor(reader.clone()).send().await;
        answer.map_err(|error| classify(self.request("LIST", ""), error))?;
        reader.0.get().copied().ok_or_else(|| StoreError::Other {
            what: format!("LIST {}", self.bucket),
            code: "NoDate".to_owned(),
            message: "the answer has no Date by which the age of objects could be told".to_owned(),
            passing: false,
        })
    }
}
