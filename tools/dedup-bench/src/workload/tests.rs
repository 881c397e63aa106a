//! Tests of the workloads: what each sends, and in which order.

use super::*;

const SIZE: u64 = 1 << 30;

fn option(workload: Workload, name: &str) -> Option<String> {
    let jobs = workload.fio_jobs(SIZE, "fsync");
    jobs[0].options.iter().find_map(|option| option.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
}

#[test]
fn the_table_has_every_workload_once_and_no_name_twice() {
    let mut names: Vec<_> = Workload::ALL.iter().map(|workload| workload.name()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), Workload::ALL.len());
    assert!(Workload::ALL.is_sorted());
}

#[test]
fn content_is_repeated_only_where_it_is_meant_to_be() {
    let seed = |workload| option(workload, "--randseed");
    assert_eq!(seed(Workload::RandomUnique), seed(Workload::RandomDuplicate100));
    assert_eq!(seed(Workload::SmallCacheUnique), seed(Workload::NearDuplicate));
    assert_eq!(seed(Workload::FarOriginals), seed(Workload::FarDuplicate));
    assert_ne!(seed(Workload::RandomDuplicate90), seed(Workload::WriteFlush));
    assert_ne!(seed(Workload::Mix), seed(Workload::RandomConnections));
    assert_ne!(seed(Workload::Pages), seed(Workload::Mix));
}

#[test]
fn connections_share_what_one_would_do() {
    assert_eq!(option(Workload::RandomConnections, "--size"), Some((SIZE / 4).to_string()));
    assert_eq!(option(Workload::RandomConnections, "--io_size"), Some((SIZE / 4).to_string()));
    assert_eq!(option(Workload::RandomConnections, "--offset_increment"), Some((SIZE / 4).to_string()));
}

#[test]
fn pages_are_written_beside_reads_that_end_with_them_and_trims_are_flushed() {
    let roles = |workload: Workload| -> Vec<Role> {
        workload.fio_jobs(SIZE, "fsync").iter().map(|job| job.role).collect()
    };
    assert_eq!(roles(Workload::Pages), [Role::Main, Role::Beside]);
    assert_eq!(option(Workload::Pages, "--exit_what").as_deref(), Some("all"));
    assert_eq!(roles(Workload::Trim), [Role::Main, Role::After]);
    assert_eq!(roles(Workload::Mix), [Role::Main]);
}
