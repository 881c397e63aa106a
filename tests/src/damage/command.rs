//! Damages as commands: what the `damage` tool does, and what the recipes of the fixtures say.

use super::{Atlas, Devices, Site};
use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};

/// One damage.
#[derive(Subcommand, Clone, Debug)]
pub enum Change {
    /// Change one bit of a field
    Flip(Flip),
    /// Overwrite a block with zeros
    Zero(Zero),
    /// Exchange two blocks
    Swap(Swap),
    /// Replace a block by the version that the older superblock has of it
    Older(Older),
}

/// A block of a volume.
#[derive(Args, Clone, Debug)]
pub struct Target {
    /// The block, as `list` prints it
    #[arg(long, value_name = "NAME")]
    pub block: String,
    /// Make its checksum and those that name it right again
    #[arg(long)]
    pub reseal: bool,
}

/// One bit of a field.
#[derive(Args, Clone, Debug)]
pub struct Flip {
    #[command(flatten)]
    target: Target,
    /// The field, as `list --fields` prints it
    #[arg(long)]
    field: String,
    /// Which of its bits, 0 is the lowest
    #[arg(long, default_value_t = 0)]
    bit: usize,
}

/// A whole block.
#[derive(Args, Clone, Debug)]
pub struct Zero {
    /// The block, as `list` prints it
    #[arg(long, value_name = "NAME")]
    block: String,
}

/// Two whole blocks.
#[derive(Args, Clone, Debug)]
pub struct Swap {
    #[command(flatten)]
    target: Target,
    /// The other block
    #[arg(long, value_name = "NAME")]
    with: String,
    /// Give each the number of its new place
    #[arg(long)]
    renumber: bool,
}

/// A block's older version.
#[derive(Args, Clone, Debug)]
pub struct Older {
    #[command(flatten)]
    target: Target,
}

impl Change {
    /// Does it to a volume.
    ///
    /// # Errors
    /// If there is no such block or field, or a device fails.
    pub fn apply(&self, devices: &Devices) -> Result<()> {
        let atlas = Atlas::of(devices).context("no volume to damage")?;
        match self {
            Self::Flip(flip) => flip.apply(devices, &atlas),
            Self::Zero(zero) => Ok(devices.zero(&atlas, site(&atlas, &zero.block)?)?),
            Self::Swap(swap) => swap.apply(devices, &atlas),
            Self::Older(older) => older.apply(devices, &atlas),
        }
    }
}

/// The block of this name.
///
/// # Errors
/// If there is none.
pub fn site<'a>(atlas: &'a Atlas, name: &str) -> Result<&'a Site> {
    atlas.find(name).with_context(|| {
        format!("no block {name}: expected a name that `damage list` prints, such as superblock:slot")
    })
}

impl Target {
    fn reseal(&self, devices: &Devices, atlas: &Atlas, sites: &[&Site]) -> Result<()> {
        if self.reseal {
            sites.iter().try_for_each(|site| devices.reseal(atlas, site))?;
        }
        Ok(())
    }
}

impl Flip {
    fn apply(&self, devices: &Devices, atlas: &Atlas) -> Result<()> {
        let site = site(atlas, &self.target.block)?;
        let fields = atlas.fields(devices, site);
        let field = fields.iter().find(|known| known.name == self.field).with_context(|| {
            format!(
                "{} has no field {}: expected one that `damage list --fields` prints",
                site.name, self.field
            )
        })?;
        let (bit, width) = (self.bit, field.width);
        ensure!(bit < width, "bit {bit}: expected one below {width}, the bits of {}", field.name);
        devices.flip(atlas, site, field, bit)?;
        self.target.reseal(devices, atlas, &[site])
    }
}

impl Swap {
    fn apply(&self, devices: &Devices, atlas: &Atlas) -> Result<()> {
        let (a, b) = (site(atlas, &self.target.block)?, site(atlas, &self.with)?);
        ensure!(
            a.meta().is_some() == b.meta().is_some()
                && devices.bytes(atlas, a)?.len() == devices.bytes(atlas, b)?.len(),
            "{} and {}: expected two blocks of one device and size",
            a.name,
            b.name
        );
        devices.swap(atlas, a, b)?;
        if self.renumber {
            [a, b].iter().filter_map(|site| site.meta()).try_for_each(|at| devices.renumber(at))?;
        }
        self.target.reseal(devices, atlas, &[a, b])
    }
}

impl Older {
    fn apply(&self, devices: &Devices, atlas: &Atlas) -> Result<()> {
        let site = site(atlas, &self.target.block)?;
        if !devices.older_version(atlas, site)? {
            bail!("{}: the older superblock has no other version of it", site.name);
        }
        self.target.reseal(devices, atlas, &[site])
    }
}
