//! `dedup-tool gc`: garbage collection on a volume that is being served.

use anyhow::{Context, Result};
use clap::ValueEnum;
use dedup_cli::control::{ControlClient, GcAction, Request};
use dedup_cli::{OutputArgs, VolumeArgs};

/// Collect stale entries of the digest index, on a volume that is being served
///
/// Space needs no collection: a block is free as soon as its last reference is gone and committed. What is
/// collected are entries of the index whose block is gone; they cost metadata space and lookups, and are
/// collected by themselves when there are many.
#[derive(clap::Args, Debug)]
// With the devices named by options, the action is the only positional argument.
#[command(allow_missing_positional = true)]
pub(crate) struct Args {
    #[command(flatten)]
    volume: VolumeArgs,
    /// What to do
    #[arg(value_enum, required = true)]
    action: Option<Action>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum Action {
    /// Begin; it runs in the background
    Start,
    /// End it early
    Stop,
    /// Say how many entries are stale, by a sample
    Estimate,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let action = match args.action.context("an action is needed: start, stop or estimate")? {
        Action::Start => GcAction::Start,
        Action::Stop => GcAction::Stop,
        Action::Estimate => GcAction::Estimate,
    };
    let paths = args.volume.resolve()?.existing()?;
    let client =
        ControlClient::connect(&paths.data).context("garbage is collected while a volume is served")?;
    let answer = client.request(&Request::Gc { action })?;
    args.output.print(&answer, crate::status::rows)?;
    Ok(())
}
