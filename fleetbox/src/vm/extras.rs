//! The builder's options besides image and sizes.

use crate::disk::extra_disk::{ExtraDisk, ExtraDiskError, MAX_EXTRA_DISKS};
use crate::disk::seed::GuestConfig;
use crate::error::Result;
use crate::model::names::InvalidValue;
use crate::model::ready::WaitCondition;
use crate::model::size::Size;

/// The values of these options, unchecked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Extras {
    /// User data documents, unchecked.
    pub(super) user_data: Vec<String>,
    pub(super) config: GuestConfig,
    pub(super) disks: Vec<ExtraDisk>,
    pub(crate) conditions: Vec<WaitCondition>,
}

impl Extras {
    /// Checks all options.
    pub(crate) fn check(&self) -> Result<(GuestConfig, Vec<ExtraDisk>)> {
        let mut config = self.config.clone();
        config.check()?;
        for text in &self.user_data {
            config.add_user_data(text)?;
        }
        if self.disks.len() > MAX_EXTRA_DISKS {
            return Err(InvalidValue::Range {
                what: "number of extra disks",
                given: self.disks.len().to_string(),
                least: "0".to_owned(),
                most: MAX_EXTRA_DISKS.to_string(),
            }
            .into());
        }
        let disks = self.disks.iter().map(ExtraDisk::check);
        let disks = disks.collect::<Result<Vec<_>, ExtraDiskError>>()?;
        for conditions in &self.conditions {
            conditions.what.check()?;
        }
        Ok((config, disks))
    }

    /// Total size of the empty disks, if there are any.
    pub(crate) fn empty_disks(&self) -> Option<Size> {
        let sizes = self.disks.iter().filter_map(ExtraDisk::empty_size);
        sizes.reduce(Size::plus)
    }
}
