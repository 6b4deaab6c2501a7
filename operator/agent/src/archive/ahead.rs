//! Work on files that nobody has asked for yet, by their names.

use std::collections::BTreeMap;

use tokio_util::task::AbortOnDropHandle;

/// What was begun. A task that is forgotten is aborted.
#[derive(Debug)]
pub(super) struct Ahead<T>(BTreeMap<String, AbortOnDropHandle<T>>);

impl<T> Default for Ahead<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T: Send + 'static> Ahead<T> {
    /// The task for this name, if there is one: whoever takes it waits for it.
    pub(super) fn take(&mut self, name: &str) -> Option<AbortOnDropHandle<T>> {
        self.0.remove(name)
    }

    /// Goes on with these names: begins what was not begun yet, and forgets all others.
    pub(super) fn go_on_with<F>(&mut self, names: Vec<String>, mut begin: impl FnMut(&str) -> F)
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut before = std::mem::take(&mut self.0);
        for name in names {
            let task = before.remove(&name).unwrap_or_else(|| AbortOnDropHandle::new(tokio::spawn(begin(&name))));
            self.0.insert(name, task);
        }
    }

    /// Forgets everything.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test]
    async fn what_was_begun_goes_on_and_what_is_not_wanted_any_more_ends() {
        let begun = Arc::new(Mutex::new(Vec::new()));
        let begin = |name: &str| {
            begun.lock().unwrap().push(name.to_owned());
            let (name, held) = (name.to_owned(), Arc::clone(&begun));
            async move {
                let _held = held;
                if name == "b" { name } else { std::future::pending().await }
            }
        };
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        let mut ahead = Ahead::default();
        ahead.go_on_with(names(&["a", "b"]), begin);
        ahead.go_on_with(names(&["b", "c"]), begin);
        assert_eq!(*begun.lock().unwrap(), ["a", "b", "c"]);
        assert!(ahead.take("a").is_none());
        assert_eq!(ahead.take("b").unwrap().await.unwrap(), "b");
        assert!(ahead.take("b").is_none());
        ahead.forget();
        // All tasks are gone, and with them what they held.
        while Arc::strong_count(&begun) > 1 {
            tokio::task::yield_now().await;
        }
    }
}
