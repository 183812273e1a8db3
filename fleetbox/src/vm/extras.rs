//! What a builder is told besides image and sizes.

use crate::disk::extra_disk::{ExtraDisk, ExtraDiskError, MAX_EXTRA_DISKS};
use crate::disk::seed::GuestConfig;
use crate::error::Result;
use crate::model::names::InvalidValue;
use crate::model::ready::Awaited;
use crate::model::size::Size;

/// What was asked for with these options.
#[derive(Debug, Clone, Default)]
pub(crate) struct Extras {
    /// Documents as they were given.
    pub(super) user_data: Vec<String>,
    pub(super) config: GuestConfig,
    pub(super) disks: Vec<ExtraDisk>,
    pub(crate) awaited: Vec<Awaited>,
}

impl Extras {
    /// Checks all of it.
    pub(crate) fn check(&self) -> Result<(GuestConfig, Vec<ExtraDisk>)> {
        let mut config = self.config.clone();
        config.check()?;
        for text in &self.user_data {
            config.add_user_data(text)?;
        }
        if self.disks.len() > MAX_EXTRA_DISKS {
            return Err(InvalidValue::Range {
                what: "a number of extra disks",
                given: self.disks.len().to_string(),
                least: "0".to_owned(),
                most: MAX_EXTRA_DISKS.to_string(),
            }
            .into());
        }
        let disks = self.disks.iter().map(ExtraDisk::check);
        let disks = disks.collect::<Result<Vec<_>, ExtraDiskError>>()?;
        for awaited in &self.awaited {
            awaited.what.check()?;
        }
        Ok((config, disks))
    }

    /// Size of the empty disks together, if there are any.
    pub(crate) fn empty_disks(&self) -> Option<Size> {
        let sizes = self.disks.iter().filter_map(ExtraDisk::empty_size);
        sizes.reduce(Size::plus)
    }
}
