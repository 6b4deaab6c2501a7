//! Which transitions of a cluster are worth an Event.
