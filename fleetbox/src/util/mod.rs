//! Small helpers that every room may use.

pub(crate) mod fs;
pub(crate) mod readable;
pub(crate) mod sync;
pub(crate) mod task;
pub(crate) mod text;
