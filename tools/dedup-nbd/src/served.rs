//! The volumes that one process serves: opened one after the other, closed all together.

use crate::args::{Args, ExportArg};
use anyhow::{Context, Result, bail};
use dedup_cli::control::DeviceId;
use dedup_cli::serve::Control;
use dedup_cli::{Backend, FormatArgs, OpenArgs, VolumeArgs, VolumePaths, human};
use dedup_nbd_server::check_exports;
use dedup_volume::{Status, Volume};
use std::sync::Arc;

/// A volume being served.
pub(crate) struct Served {
    /// The export's name.
    pub(crate) name: String,
    /// What clients are told about it.
    pub(crate) description: String,
    pub(crate) paths: VolumePaths,
    pub(crate) volume: Arc<Volume>,
    /// As it was opened.
    pub(crate) status: Status,
    control: Control,
}

/// Whether the arguments name volumes that can be exports side by side, as far as that can be told without
/// opening them.
pub(crate) fn check(args: &Args, name: &str) -> Result<()> {
    let mut exports = Vec::new();
    if !args.volume.is_empty() {
        let paths = args.volume.resolve()?;
        exports.push((
            name.to_owned(),
            args.description.clone().unwrap_or_else(|| paths.name.clone()),
            paths,
        ));
    } else if args.open.create || !args.open.reconstruct || args.open.mdbackend == Backend::Inram {
        bail!(
            "--create, --reconstruct no and --mdbackend inram are for VOLUME; --export serves what is there"
        );
    }
    for export in &args.exports {
        let paths = VolumeArgs::directory(&export.volume).resolve().and_then(VolumePaths::existing);
        let paths = paths.with_context(|| format!("export {:?}", export.name))?;
        let description = export.description.clone().unwrap_or_else(|| paths.name.clone());
        exports.push((export.name.clone(), description, paths));
    }
    check_exports(exports.iter().map(|(name, description, _)| (&**name, &**description)))?;
    // What cannot be found is reported by the opening.
    let ids: Vec<_> = exports.iter().map(|(_, _, paths)| DeviceId::of(&paths.data).ok()).collect();
    for (i, (name, _, _)) in exports.iter().enumerate() {
        // It would be found in use by this very process.
        if let Some(other) = (0..i).find(|other| ids[i].is_some() && ids[*other] == ids[i]) {
            bail!("export {name:?}: its volume is exported already, as {:?}", exports[other].0);
        }
    }
    Ok(())
}

/// Opens all that the arguments name; `name` is the name of VOLUME's export. If one cannot be opened, the
/// others are closed.
pub(crate) fn open_all(args: &Args, name: &str) -> Result<Vec<Served>> {
    let mut served = Vec::new();
    match try_open_all(args, name, &mut served) {
        Ok(()) => Ok(served),
        Err(error) => {
            // The first error is the one to tell.
            let _ = close_all(served);
            Err(error)
        }
    }
}

fn try_open_all(args: &Args, name: &str, served: &mut Vec<Served>) -> Result<()> {
    for export in &args.exports {
        let context = || format!("export {:?}", export.name);
        let volume = VolumeArgs::directory(&export.volume);
        let options = options_for(export, &args.open);
        served.push(
            open(&volume, &options, &export.name, export.description.as_deref()).with_context(context)?,
        );
    }
    // It comes first, and is opened last: it may be made anew, which nobody wants if one of the others cannot
    // be served.
    if !args.volume.is_empty() {
        served.insert(0, open(&args.volume, &args.open, name, args.description.as_deref())?);
    }
    Ok(())
}

/// How to open an export's volume: as VOLUME, but without anything that makes or changes one.
fn options_for(export: &ExportArg, open: &OpenArgs) -> OpenArgs {
    let read_only = open.read_only || export.read_only;
    OpenArgs {
        read_only,
        discard: open.discard && !read_only,
        create: false,
        logical_size: None,
        format: FormatArgs {
            flushrq: open.format.flushrq,
            verify_match: open.format.verify_match,
            force: open.format.force,
            ..FormatArgs::default()
        },
        reconstruct: true,
        mdbackend: Backend::Cowbtree,
        ..open.clone()
    }
}

fn open(volume: &VolumeArgs, options: &OpenArgs, name: &str, description: Option<&str>) -> Result<Served> {
    let paths = volume.resolve()?;
    let (volume, control) = options.open_served(&paths)?;
    let status = volume.status();
    tracing::info!(
        "serving {}: {} in blocks of {}, {}{}{}",
        paths.name,
        human(status.logical_size),
        human(status.block_size),
        status.crypto_alg,
        if options.read_only { ", read-only" } else { "" },
        if options.mdbackend == Backend::Inram { ", metadata in memory" } else { "" }
    );
    let description = description.unwrap_or(&paths.name).to_owned();
    Ok(Served { name: name.to_owned(), description, paths, volume, status, control })
}

/// Makes everything durable. All are closed; the first error is returned.
pub(crate) fn close_all(served: Vec<Served>) -> Result<()> {
    let results: Vec<_> = served.into_iter().map(Served::close).collect();
    results.into_iter().collect()
}

impl Served {
    fn close(self) -> Result<()> {
        drop(self.control);
        let stats = self.volume.status();
        let volume = Arc::into_inner(self.volume).context("the volume is still in use")?;
        volume.close().with_context(|| format!("cannot close the volume {}", self.paths.name))?;
        tracing::info!(
            "closed: {} of data in {}, {} operations",
            human(stats.logical_used),
            human(stats.data_used),
            stats.commit.published
        );
        Ok(())
    }
}
