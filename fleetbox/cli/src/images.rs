//! `images`.

use std::str::FromStr as _;

use fleetbox::Result;
use fleetbox::images::{Freshness, ImageRef, Images};

use crate::args;
use crate::exit::FAILURE;
use crate::output::{Context, complain};
use crate::progress::Display;
use crate::{confirm, table};

pub(crate) async fn run(context: &Context, command: args::Images) -> Result<u8> {
    let images = Images::new(&context.store()?)?;
    match command {
        args::Images::Ls => ls(context, &images),
        args::Images::Pull { image } => pull(context, &images, &image).await,
        args::Images::Rm { images: names, all } => rm(context, &images, &names, all),
        args::Images::Refresh { images: names } => refresh(context, &images, &names).await,
    }
}

fn ls(context: &Context, images: &Images) -> Result<u8> {
    let images = images.list()?;
    if context.json {
        context.say_json(&images)?;
        return Ok(0);
    }
    let rows: Vec<_> = images
        .into_iter()
        .map(|image| {
            [
                image.alias,
                image.snapshot.unwrap_or_default(),
                image
                    .bytes
                    .map_or_else(|| "not downloaded".to_owned(), table::size),
                image.url,
            ]
        })
        .collect();
    table::print(context, ["ALIAS", "SNAPSHOT", "SIZE", "URL"], &rows);
    Ok(0)
}

async fn pull(context: &Context, images: &Images, image: &str) -> Result<u8> {
    let resolved = images.resolve(&ImageRef::from_str(image)?)?;
    let display = Display::new(context, &format!("looking for {image}"));
    let pulled = images.pull(&resolved, display.progress().as_ref()).await;
    drop(display);
    let image = pulled?;
    if context.json {
        context.say_json(&serde_json::json!({
            "reference": image.reference,
            "path": image.path,
            "bytes": image.bytes,
            "sha256": image.sha256,
        }))?;
    } else {
        context.say(image.path.display());
    }
    Ok(0)
}

fn rm(context: &Context, images: &Images, names: &[String], all: bool) -> Result<u8> {
    let mut status = 0;
    let mut removed = Vec::new();
    if all {
        if !confirm::confirm("Delete all images that no VM uses?", false) {
            context.note("nothing was deleted");
            if context.json {
                context.say_json(&[(); 0])?;
            }
            return Ok(FAILURE);
        }
        removed = images.remove_unused()?;
    }
    for name in names {
        match ImageRef::from_str(name)
            .map_err(Into::into)
            .and_then(|image| {
                let resolved = images.resolve(&image)?;
                Ok::<_, fleetbox::Error>(images.remove(&resolved)?)
            }) {
            Ok(Some(path)) => removed.push(path),
            Ok(None) => context.tell(format_args!("{name} is not downloaded")),
            Err(error) => {
                complain(error);
                status = FAILURE;
            }
        }
    }
    for path in &removed {
        context.tell(format_args!("deleted {}", path.display()));
    }
    if context.json {
        let outcome = |path| serde_json::json!({"path": path, "result": "deleted"});
        context.say_json(&removed.iter().map(outcome).collect::<Vec<_>>())?;
    }
    Ok(status)
}

async fn refresh(context: &Context, images: &Images, names: &[String]) -> Result<u8> {
    let mut status = 0;
    let mut found = Vec::new();
    for listed in images.list()? {
        if !names.is_empty() && !names.contains(&listed.alias) {
            continue;
        }
        match images.freshness(&listed.alias).await {
            Ok(freshness) => found.push(freshness),
            Err(error) => {
                complain(error);
                status = FAILURE;
            }
        }
    }
    for name in names {
        // The error lists the aliases.
        if let Err(error) = ImageRef::from_str(name)
            .map_err(fleetbox::Error::from)
            .and_then(|image| Ok(images.resolve(&image)?))
        {
            complain(error);
            status = FAILURE;
        }
    }
    if context.json {
        context.say_json(&found)?;
        return Ok(status);
    }
    let rows: Vec<_> = found
        .into_iter()
        .map(
            |Freshness {
                 alias,
                 snapshot,
                 newest,
                 ..
             }| {
                let news = match &newest {
                    Some(newest) if Some(newest) != snapshot.as_ref() => newest.clone(),
                    Some(_) => "up to date".to_owned(),
                    None => "unknown".to_owned(),
                };
                [alias, snapshot.unwrap_or_default(), news]
            },
        )
        .collect();
    table::print(context, ["ALIAS", "SNAPSHOT", "NEWEST"], &rows);
    Ok(status)
}
