//! How much memory there is, and giving it back.
#![cfg_attr(
    target_env = "gnu",
    expect(unsafe_code, reason = "a call of the C library that no safe crate has")
)]

use std::fs;
use std::path::Path;

/// Bytes of memory that this process may use: the machine's, or less where a control group (of a
/// container, of systemd) allows less. None if the system does not say.
pub fn available() -> Option<u64> {
    available_under(Path::new("/"))
}

fn available_under(root: &Path) -> Option<u64> {
    let machine = machine_memory(&fs::read_to_string(root.join("proc/meminfo")).ok()?);
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let limits = groups.lines().flat_map(|line| group_limits(root, line));
    machine.into_iter().chain(limits).min()
}

fn machine_memory(meminfo: &str) -> Option<u64> {
    let total = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = total.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// What a process's control group and those around it allow. `line` is one of `/proc/self/cgroup`:
/// `0::/path` of version 2, `4:memory:/path` of version 1 (cgroups(7)).
fn group_limits(root: &Path, line: &str) -> Vec<u64> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
        return Vec::new();
    };
    let (tree, names): (_, &[_]) = match controllers {
        "" => ("sys/fs/cgroup", &["memory.max", "memory.high"]),
        _ if controllers.split(',').any(|name| name == "memory") => {
            ("sys/fs/cgroup/memory", &["memory.limit_in_bytes"])
        }
        _ => return Vec::new(),
    };
    let tree = root.join(tree);
    let group = tree.join(path.trim_start_matches('/'));
    let groups = group
        .ancestors()
        .take_while(|group| group.starts_with(&tree));
    let files = groups.flat_map(|group| names.iter().map(|name| group.join(name)));
    // "max" is no number.
    files
        .filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok())
        .collect()
}

/// Gives memory that is free within the process back to the system, which an allocator may keep for
/// good. Takes a millisecond for some hundred mebibytes.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number, and touches nothing but what the allocator has for itself.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn machine() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let meminfo = "MemTotal:        1000 kB\nMemFree:          10 kB\n";
        write(root.path(), "proc/meminfo", meminfo);
        root
    }

    #[test]
    fn a_machine_without_groups_has_its_memory() {
        let root = machine();
        assert_eq!(available_under(root.path()), Some(1_024_000));
    }

    #[test]
    fn the_smallest_limit_of_the_groups_around_a_process_counts() {
        let root = machine();
        write(
            root.path(),
            "proc/self/cgroup",
            "0::/system.slice/lostlove.service\n",
        );
        let group = "sys/fs/cgroup/system.slice";
        write(
            root.path(),
            &format!("{group}/lostlove.service/memory.max"),
            "max\n",
        );
        assert_eq!(available_under(root.path()), Some(1_024_000));
        write(root.path(), &format!("{group}/memory.max"), "500000\n");
        assert_eq!(available_under(root.path()), Some(500_000));
        write(
            root.path(),
            &format!("{group}/lostlove.service/memory.high"),
            "400000\n",
        );
        assert_eq!(available_under(root.path()), Some(400_000));
        write(root.path(), "sys/fs/cgroup/memory.max", "300000\n");
        assert_eq!(available_under(root.path()), Some(300_000));
    }

    #[test]
    fn groups_of_version_1_are_asked_as_well() {
        let root = machine();
        let groups = "5:cpu,cpuacct:/a\n4:memory:/docker/abc\n";
        write(root.path(), "proc/self/cgroup", groups);
        let limit = "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes";
        write(root.path(), limit, "200000\n");
        assert_eq!(available_under(root.path()), Some(200_000));
        // What no limit looks like there.
        write(root.path(), limit, "9223372036854771712\n");
        assert_eq!(available_under(root.path()), Some(1_024_000));
    }

    #[test]
    fn this_system_says_how_much_there_is() {
        assert!(available().is_some_and(|bytes| bytes > 1 << 20));
    }
}
