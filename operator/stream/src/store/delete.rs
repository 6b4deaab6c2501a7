//! Deleting objects: one, or as many as one request takes.

use aws_sdk_s3::types::{Delete, Error, ObjectIdentifier};

use super::{
    ObjectStore, StoreError,
    classify::{classify, status},
};

/// One request deletes no more objects than this.
const BATCH: usize = 1000;

impl ObjectStore {
    /// Deletes an object; one that is not there is fine.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn delete(&self, key: &str) -> Result<(), StoreError> {
        match self.client.delete_object().bucket(&self.bucket).key(key).send().await {
            Ok(_) => Ok(()),
            Err(error) => match classify(self.request("DELETE", key), error) {
                StoreError::NoSuchObject(_) => Ok(()),
                error => Err(error),
            },
        }
    }

    /// Deletes objects, many by one request; those that are not there are fine. What the store does not delete so is deleted
    /// one by one.
    ///
    /// # Errors
    /// [`StoreError`] of the first that could not be deleted.
    pub async fn delete_all(&self, keys: &[String]) -> Result<(), StoreError> {
        for batch in keys.chunks(BATCH) {
            for key in self.delete_batch(batch).await? {
                self.delete(&key).await?;
            }
        }
        Ok(())
    }

    /// Gives the keys that are left.
    async fn delete_batch(&self, keys: &[String]) -> Result<Vec<String>, StoreError> {
        let [first, _, ..] = keys else { return Ok(keys.to_vec()) };
        let name = |key: &String| ObjectIdentifier::builder().key(key).build();
        let objects = keys.iter().map(name).collect::<Result<Vec<_>, _>>();
        let delete = objects.and_then(|objects| Delete::builder().set_objects(Some(objects)).quiet(true).build());
        let delete = delete.map_err(|error| StoreError::Config(error.to_string()))?;
        let request = self.client.delete_objects().bucket(&self.bucket).delete(delete);
        match request.send().await {
            // The answer is 200 whatever became of each object.
            Ok(answer) => Ok(find_left(keys, answer.errors())),
            // Not every store knows the request, or takes the checksum that this one has.
            Err(error) if matches!(status(&error), Some(400 | 405 | 411 | 501)) => Ok(keys.to_vec()),
            Err(error) => Err(classify(self.request("DELETE", first), error)),
        }
    }
}

/// Of the keys those that the store complains about; all of them where it does not say which it means.
fn find_left(keys: &[String], errors: &[Error]) -> Vec<String> {
    let is_left = |key: &&String| errors.iter().any(|error| error.key() == Some(key.as_str()));
    let left: Vec<String> = keys.iter().filter(is_left).cloned().collect();
    if left.len() < errors.len() { keys.to_vec() } else { left }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_store_complains_about_is_left_and_nothing_else_is_ever_named() {
        let keys = ["a", "b", "c"].map(str::to_owned);
        let error = |key: Option<&str>| Error::builder().set_key(key.map(str::to_owned)).code("InternalError").build();
        assert_eq!(find_left(&keys, &[]), [""; 0]);
        assert_eq!(find_left(&keys, &[error(Some("b"))]), ["b"]);
        assert_eq!(find_left(&keys, &[error(Some("b")), error(None)]), keys);
        assert_eq!(find_left(&keys, &[error(Some("another"))]), keys);
    }
}
