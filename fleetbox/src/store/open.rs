//! Opening the state directory from async code.

use std::path::Path;

use super::{Store, StoreError};
use crate::util::task::blocking;

/// The state directory at `home`, or the default one.
pub(crate) async fn open_store(home: Option<&Path>) -> Result<Store, StoreError> {
    let home = match home {
        Some(home) => home.to_owned(),
        None => Store::default_home()?,
    };
    blocking(move || Store::open(home)).await
}
