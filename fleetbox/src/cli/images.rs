//! `images ls` and `images pull`.

use std::path::Path;
use std::str::FromStr as _;

use fleetbox::images::{ImageRef, Images, progress};
use fleetbox::store::Store;
use fleetbox::{Result, Size};

use super::{say, say_json, table};

fn open(home: Option<&Path>) -> Result<Images> {
    let store = match home {
        Some(home) => Store::open(home)?,
        None => Store::open_default()?,
    };
    Ok(Images::new(&store)?)
}

pub(super) async fn ls(home: Option<&Path>, json: bool) -> Result<u8> {
    let images = open(home)?.list()?;
    if json {
        say_json(&images)?;
        return Ok(0);
    }
    let rows: Vec<_> = images
        .into_iter()
        .map(|image| {
            let here = match image.bytes {
                Some(bytes) => Size::mib(bytes.div_ceil(1 << 20)).to_string(),
                None => "not downloaded".to_owned(),
            };
            [
                image.alias,
                image.snapshot.unwrap_or_default(),
                here,
                image.url,
            ]
        })
        .collect();
    say(table::render(["ALIAS", "SNAPSHOT", "HERE", "URL"], &rows));
    Ok(0)
}

pub(super) async fn pull(home: Option<&Path>, image: &str) -> Result<u8> {
    let images = open(home)?;
    let resolved = images.resolve(&ImageRef::from_str(image)?)?;
    let image = images.pull(&resolved, progress::stderr().as_ref()).await?;
    say(image.path.display());
    Ok(0)
}
