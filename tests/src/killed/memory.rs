//! A journal in memory that outlives the volumes of a test, and the moment at which the process dies.

use dedup_volume::{JournalFile, JournalOptions, JournalPlace};
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use uuid::Uuid;

/// Bytes of a page of a file in memory.
const PAGE: u64 = 4096;

/// When a process dies, counted in events.
#[derive(Debug)]
pub struct Death {
    events: AtomicU64,
    at: u64,
}

impl Death {
    /// At event `at`.
    pub fn at(at: u64) -> Arc<Self> {
        Arc::new(Self { events: AtomicU64::new(0), at })
    }

    /// An event begins or ends: whether the process is dead by now.
    pub fn event(&self) -> bool {
        self.events.fetch_add(1, SeqCst) >= self.at
    }

    /// Whether it has died.
    pub fn is_over(&self) -> bool {
        self.events() > self.at
    }

    /// Events so far.
    pub fn events(&self) -> u64 {
        self.events.load(SeqCst)
    }
}

/// Files by name, each as pages by number.
pub type Files = BTreeMap<String, BTreeMap<u64, Vec<u8>>>;

/// Where journals are kept. Clones share the files.
#[derive(Clone, Debug)]
pub struct Memory {
    shared: Arc<Shared>,
    device: String,
}

#[derive(Debug)]
struct Shared {
    files: Mutex<Files>,
    fails: AtomicBool,
    refuses: AtomicBool,
    death: Mutex<Arc<Death>>,
    hook: Mutex<Option<Hook>>,
}

/// What is done once, before a write.
struct Hook(Box<dyn FnOnce() + Send>);

impl std::fmt::Debug for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hook")
    }
}

impl Memory {
    /// A place without files, for the metadata device of this name.
    pub fn new(device: &str) -> Self {
        let shared = Shared {
            files: Mutex::default(),
            fails: AtomicBool::new(false),
            refuses: AtomicBool::new(false),
            death: Mutex::new(Death::at(u64::MAX)),
            hook: Mutex::default(),
        };
        Self { shared: Arc::new(shared), device: device.to_owned() }
    }

    /// The same files, as they are for the opener of another device.
    pub fn for_device(&self, device: &str) -> Self {
        Self { device: device.to_owned(), ..self.clone() }
    }

    /// How a process of this boot opens its volume; `id` is for a journal that it begins.
    pub fn options(&self, boot: u128, id: u128) -> JournalOptions {
        JournalOptions { place: Arc::new(self.clone()), boot: Uuid::from_u128(boot), id: Uuid::from_u128(id) }
    }

    /// The process that uses it dies then.
    pub fn dies(&self, death: &Arc<Death>) {
        *self.shared.death.lock().unwrap() = Arc::clone(death);
    }

    /// Writes fail from now on, or no longer.
    pub fn fail(&self, fails: bool) {
        self.shared.fails.store(fails, SeqCst);
    }

    /// No file can be made from now on.
    pub fn refuse(&self) {
        self.shared.refuses.store(true, SeqCst);
    }

    /// Does this before the next write of a file, in the thread that writes.
    pub fn before_write(&self, hook: impl FnOnce() + Send + 'static) {
        *self.shared.hook.lock().unwrap() = Some(Hook(Box::new(hook)));
    }

    /// What is there.
    pub fn files(&self) -> Files {
        self.shared.files.lock().unwrap().clone()
    }

    /// Puts back what was there; nothing, after a power cut.
    pub fn restore(&self, files: Files) {
        *self.shared.files.lock().unwrap() = files;
    }

    fn is_dead(&self) -> bool {
        self.shared.death.lock().unwrap().event()
    }
}

impl JournalPlace for Memory {
    fn create(&self, _: Uuid) -> io::Result<Arc<dyn JournalFile>> {
        if self.is_dead() || self.shared.refuses.load(SeqCst) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.shared.files.lock().unwrap().insert(self.device.clone(), BTreeMap::new());
        self.open(&self.device)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn JournalFile>> {
        match self.shared.files.lock().unwrap().contains_key(name) {
            true => Ok(Arc::new(MemoryFile { place: self.clone(), name: name.to_owned() })),
            false => Err(io::Error::new(io::ErrorKind::NotFound, format!("{name}: no such journal"))),
        }
    }

    fn device(&self) -> String {
        self.device.clone()
    }
}

#[derive(Debug)]
struct MemoryFile {
    place: Memory,
    name: String,
}

impl MemoryFile {
    fn put(&self, offset: u64, bytes: &[u8]) {
        let mut files = self.place.shared.files.lock().unwrap();
        let Some(pages) = files.get_mut(&self.name) else { return };
        for (at, byte) in (offset..).zip(bytes) {
            let page = pages.entry(at / PAGE).or_insert_with(|| vec![0; PAGE as usize]);
            page[(at % PAGE) as usize] = *byte;
        }
    }
}

impl JournalFile for MemoryFile {
    fn name(&self) -> String {
        self.name.clone()
    }

    /// Two events: a process that dies in between has written some of it.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let hook = self.place.shared.hook.lock().unwrap().take();
        if let Some(Hook(hook)) = hook {
            hook();
        }
        if self.place.is_dead() {
            return Err(io::Error::other("the process is dead"));
        }
        if self.place.shared.fails.load(SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if self.place.is_dead() {
            let torn = self.place.shared.death.lock().unwrap().at as usize % bytes.len();
            self.put(offset, &bytes[..torn]);
            return Err(io::Error::other("the process is dead"));
        }
        self.put(offset, bytes);
        Ok(())
    }

    fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let files = self.place.shared.files.lock().unwrap();
        let pages = files.get(&self.name).ok_or(io::ErrorKind::NotFound)?;
        let end = pages.keys().next_back().map_or(0, |page| (page + 1) * PAGE);
        let mut bytes = vec![0; len.min(end.saturating_sub(offset) as usize)];
        let wanted = offset / PAGE..=(offset + bytes.len() as u64) / PAGE;
        for (page, content) in pages.range(wanted) {
            for (at, byte) in (page * PAGE..).zip(content) {
                if let Some(place) = at.checked_sub(offset).and_then(|at| bytes.get_mut(at as usize)) {
                    *place = *byte;
                }
            }
        }
        Ok(bytes)
    }

    fn remove(&self) -> io::Result<()> {
        if self.place.is_dead() {
            return Err(io::Error::other("the process is dead"));
        }
        self.place.shared.files.lock().unwrap().remove(&self.name);
        Ok(())
    }
}
