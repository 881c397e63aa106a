//! Tests of the workloads: what each sends, and in which order.

use super::*;

const SIZE: u64 = 1 << 30;

fn jobs(name: &str) -> Vec<FioJob> {
    let found = crate::sessions::workloads().find(|workload| workload.name == name);
    found.unwrap().fio_jobs(SIZE, "fsync")
}

fn option(workload: &str, name: &str) -> Option<String> {
    jobs(workload)[0]
        .options
        .iter()
        .find_map(|option| option.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
}

#[test]
fn content_is_repeated_only_where_it_is_meant_to_be() {
    let seed = |workload| option(workload, "--randseed");
    assert_eq!(seed("4K random write, unique, QD32"), seed("4K random write, 100 % duplicate, QD32"));
    assert_eq!(
        seed("4K random write, unique, small cache, QD32"),
        seed("4K random write, near duplicates, small cache, QD32")
    );
    assert_eq!(
        seed("4K random write, 75 % far duplicates, small cache, QD32"),
        seed("4K random write, far duplicates, small cache, QD32")
    );
    assert_ne!(seed("4K random write, 90 % duplicate, QD32"), seed("4K random write + flush, QD1"));
    assert_ne!(seed("4K random 70 % read 30 % write, QD32"), seed("4K random write, unique, 4 x QD8"));
    assert_ne!(
        seed("8K pages: write + flush, 4 clients, beside reads"),
        seed("4K random 70 % read 30 % write, QD32")
    );
}

#[test]
fn connections_share_what_one_would_do() {
    assert_eq!(option("4K random write, unique, 4 x QD8", "--size"), Some((SIZE / 4).to_string()));
    assert_eq!(option("4K random write, unique, 4 x QD8", "--io_size"), Some((SIZE / 4).to_string()));
    assert_eq!(
        option("4K random write, unique, 4 x QD8", "--offset_increment"),
        Some((SIZE / 4).to_string())
    );
}

#[test]
fn pages_are_written_beside_reads_that_end_with_them_and_trims_are_flushed() {
    let roles = |name| -> Vec<Role> { jobs(name).iter().map(|job| job.role).collect() };
    assert_eq!(roles("8K pages: write + flush, 4 clients, beside reads"), [Role::Main, Role::Beside]);
    assert_eq!(
        option("8K pages: write + flush, 4 clients, beside reads", "--exit_what").as_deref(),
        Some("all")
    );
    assert_eq!(roles("1M trim of everything, QD32"), [Role::Main, Role::After]);
    assert_eq!(roles("4K random 70 % read 30 % write, QD32"), [Role::Main]);
}
