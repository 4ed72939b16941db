//! What this process may take: the least of what its control groups, its own limits and the machine say.

/// Whether the kinds of a line in `/proc/self/cgroup` are those of the group.
type IsLine = fn(&str) -> bool;

/// A control group's root by version, the file that names its limit, and how its line in `/proc/self/cgroup` begins (behind the number).
const GROUPS: [(&str, &str, IsLine); 2] = [
    ("/sys/fs/cgroup", "memory.max", str::is_empty),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", |kinds| kinds.split(',').any(|kind| kind == "memory")),
];
/// Where nobody set a limit: this part of the machine's memory.
const OF_THE_MACHINE: u64 = 2;
/// Where nothing is known.
const UNKNOWN: u64 = 512 << 20;

/// Bytes that this process may take, by what `read` finds in files.
pub fn limit(read: impl Fn(&str) -> Option<String>) -> u64 {
    let groups = read("/proc/self/cgroup").unwrap_or_default();
    let mut limits: Vec<u64> = GROUPS.iter().flat_map(|group| of_group(&groups, *group, &read)).collect();
    limits.extend(address_space(&read("/proc/self/limits").unwrap_or_default()));
    limits.extend(machine(&read("/proc/meminfo").unwrap_or_default()).map(|all| all / OF_THE_MACHINE));
    limits.into_iter().min().unwrap_or(UNKNOWN)
}

/// The limits of a group and of those around it. In a container the path may be that of the machine: the root stands for the container then.
fn of_group(
    groups: &str,
    (root, file, is_it): (&str, &str, fn(&str) -> bool),
    read: &impl Fn(&str) -> Option<String>,
) -> Vec<u64> {
    let path = groups.lines().find_map(|line| {
        let (kinds, path) = line.split_once(':')?.1.split_once(':')?;
        is_it(kinds).then_some(path)
    });
    let path = path.unwrap_or("").trim_matches('/');
    let ends = path.match_indices('/').map(|(at, _)| at).chain([0, path.len()]);
    ends.filter_map(|end| {
        let folder = &path[..end];
        let slash = if folder.is_empty() { "" } else { "/" };
        // `max` is no number.
        read(&format!("{root}{slash}{folder}/{file}"))?.trim().parse().ok()
    })
    .collect()
}

/// The soft limit of `ulimit -v`; nothing for `unlimited`.
fn address_space(limits: &str) -> Option<u64> {
    limits.lines().find_map(|line| line.strip_prefix("Max address space"))?.split_whitespace().next()?.parse().ok()
}

fn machine(meminfo: &str) -> Option<u64> {
    let kilobytes: u64 =
        meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(files: &[(&str, &str)], expected: u64) {
        let read = |path: &str| files.iter().find(|(name, _)| *name == path).map(|(_, text)| (*text).to_owned());
        assert_eq!(limit(read), expected);
    }

    #[test]
    fn the_least_limit_of_all_counts() {
        const MACHINE: (&str, &str) = ("/proc/meminfo", "MemTotal:       8388608 kB\nMemFree: 1 kB\n");
        check(&[], UNKNOWN);
        check(&[MACHINE], 4 << 30);
        // Version 2, in a container with a namespace of its own.
        let own = ("/proc/self/cgroup", "0::/\n");
        check(&[MACHINE, own, ("/sys/fs/cgroup/memory.max", "536870912\n")], 512 << 20);
        check(&[MACHINE, own, ("/sys/fs/cgroup/memory.max", "max\n")], 4 << 30);
        // A group inside another one with less.
        let deep = ("/proc/self/cgroup", "0::/kube/pod/one\n");
        let files = [("/sys/fs/cgroup/kube/memory.max", "1000"), ("/sys/fs/cgroup/kube/pod/one/memory.max", "2000")];
        check(&[MACHINE, deep, files[0], files[1]], 1000);
        // Version 1, with the path of the machine.
        let old = ("/proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n");
        check(&[MACHINE, old, ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712")], 4 << 30);
        check(&[MACHINE, old, ("/sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", "3000\n")], 3000);
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max address space         4000                 unlimited            bytes     \n";
        check(&[MACHINE, ("/proc/self/limits", limits)], 4000);
        check(&[MACHINE, ("/proc/self/limits", &limits.replace("4000", "unlimited"))], 4 << 30);
    }
}
