//! The key-value stores that ours is held against, each with its defaults but for memory and durability.

use super::blocks;
use super::phase::{Index, Phase};
use anyhow::{Context, Result, ensure};
use heed::types::Bytes;
use redb::ReadableDatabase;
use std::fs;
use std::ops::Range;

/// redb: a copy-on-write B-tree with a cache of its own above the page cache. One commit is one flush, its
/// default.
pub(super) struct Redb(redb::Database);

const TABLE: redb::TableDefinition<'_, &[u8; 32], u64> = redb::TableDefinition::new("index");

impl Redb {
    pub(super) fn open(phase: &Phase) -> Result<Self> {
        let mut builder = redb::Builder::new();
        builder.set_cache_size(phase.cache_bytes as usize);
        Ok(Self(builder.create(phase.dir.join("redb")).context("cannot open redb")?))
    }
}

impl Index for Redb {
    fn insert(&mut self, numbers: Range<u64>) -> Result<()> {
        let items = blocks::items(numbers);
        let transaction = self.0.begin_write()?;
        {
            let mut table = transaction.open_table(TABLE)?;
            for (key, value) in &items {
                table.insert(key, value)?;
            }
        }
        Ok(transaction.commit()?)
    }

    fn find(&mut self, keys: &[[u8; 32]]) -> Result<u64> {
        let table = self.0.begin_read()?.open_table(TABLE)?;
        count(keys, |key| Ok(table.get(key)?.map(|value| value.value())))
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// LMDB: a copy-on-write B-tree read through a memory map, with no cache but the kernel's, which nothing here
/// limits. A commit writes its pages and flushes.
pub(super) struct Lmdb {
    env: heed::Env,
    database: heed::Database<'static, Bytes, Bytes>,
}

/// Bytes of address space a key: several times what a tree of half full pages takes, with the pages that
/// commits free.
const MAP_BYTES_A_KEY: u64 = 1024;

impl Lmdb {
    pub(super) fn open(phase: &Phase) -> Result<Self> {
        let mut options = heed::EnvOpenOptions::new();
        options.map_size((phase.capacity * MAP_BYTES_A_KEY).next_multiple_of(1 << 30) as usize);
        let dir = phase.dir.join("lmdb");
        fs::create_dir_all(&dir)?;
        #[expect(unsafe_code, reason = "the binding has no other way to open")]
        // SAFETY: the map is of a file in a directory that this run has made for itself; nobody else writes
        // to it.
        let env = unsafe { options.open(dir) }.context("cannot open LMDB")?;
        let database = env
            .create_databases_and_commit(env.write_txn()?, |opener, transaction| {
                opener.create_database(transaction, None).map(heed::CommitOrAbort::<_, ()>::Commit)
            })?
            .unwrap_commit();
        Ok(Self { env, database })
    }
}

impl Index for Lmdb {
    fn insert(&mut self, numbers: Range<u64>) -> Result<()> {
        let items = blocks::items(numbers);
        let mut transaction = self.env.write_txn()?;
        for (key, value) in &items {
            self.database.put(&mut transaction, key, &value.to_le_bytes())?;
        }
        Ok(transaction.commit()?)
    }

    fn find(&mut self, keys: &[[u8; 32]]) -> Result<u64> {
        let transaction = self.env.read_txn()?;
        count(keys, |key| self.database.get(&transaction, key)?.map(value).transpose())
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// fjall: a log-structured merge tree. Half of the memory is for blocks, half for two tables in memory.
pub(super) struct Fjall {
    database: fjall::Database,
    index: fjall::Keyspace,
}

/// Keys of one atomic batch: a commit of more is several, of which the last makes all durable, as with ours.
const BATCH_KEYS: usize = 4096;
/// What the crate recommends at least and at most for a table in memory.
const MEMTABLE_BYTES: std::ops::RangeInclusive<u64> = 8 << 20..=64 << 20;

impl Fjall {
    pub(super) fn open(phase: &Phase) -> Result<Self> {
        let database = fjall::Database::builder(phase.dir.join("fjall"));
        let database = database.cache_size(phase.cache_bytes / 2).open().context("cannot open fjall")?;
        let memtable = (phase.cache_bytes / 4).clamp(*MEMTABLE_BYTES.start(), *MEMTABLE_BYTES.end());
        let options = || fjall::KeyspaceCreateOptions::default().max_memtable_size(memtable);
        let index = database.keyspace("index", options).context("cannot open fjall")?;
        Ok(Self { database, index })
    }
}

impl Index for Fjall {
    fn insert(&mut self, numbers: Range<u64>) -> Result<()> {
        let items = blocks::items(numbers);
        let last = items.len().div_ceil(BATCH_KEYS).saturating_sub(1);
        for (place, items) in items.chunks(BATCH_KEYS).enumerate() {
            let durability = (place == last).then_some(fjall::PersistMode::SyncData);
            let mut batch = self.database.batch().durability(durability);
            for (key, value) in items {
                batch.insert(&self.index, key.as_slice(), value.to_le_bytes().as_slice());
            }
            batch.commit()?;
        }
        Ok(())
    }

    fn find(&mut self, keys: &[[u8; 32]]) -> Result<u64> {
        count(keys, |key| self.index.get(key)?.as_deref().map(value).transpose())
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

fn value(bytes: &[u8]) -> Result<u64> {
    Ok(u64::from_le_bytes(bytes.try_into().context("expected a value of 8 bytes")?))
}

/// How many keys there are; a value that the key cannot have is an error.
fn count(keys: &[[u8; 32]], get: impl Fn(&[u8; 32]) -> Result<Option<u64>>) -> Result<u64> {
    let mut found = 0;
    let mut block = blocks::Block::new();
    for key in keys {
        if let Some(number) = get(key)? {
            // One in a thousand is enough: it costs a digest.
            ensure!(
                found % 1000 != 0 || block.key(number) == *key,
                "a key has the value of another: {number}"
            );
            found += 1;
        }
    }
    Ok(found)
}
