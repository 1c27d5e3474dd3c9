//! What work costs.

use std::mem::MaybeUninit;
use std::time::Duration;

/// CPU time that the calling thread has taken so far, and the programs that this process has waited
/// for, whoever ran them: one thread is to run programs. Unlike what a clock says, it is the same on an
/// idle machine and on a busy one.
#[expect(unsafe_code, reason = "a system call that no safe crate has")]
pub(crate) fn cpu_time() -> Duration {
    let of = |whose| {
        let mut usage = MaybeUninit::<libc::rusage>::zeroed();
        // SAFETY: `usage` is a valid place for the answer, and zeros are one, too.
        let usage = unsafe {
            libc::getrusage(whose, usage.as_mut_ptr());
            usage.assume_init()
        };
        duration(usage.ru_utime) + duration(usage.ru_stime)
    };
    of(libc::RUSAGE_THREAD) + of(libc::RUSAGE_CHILDREN)
}

fn duration(time: libc::timeval) -> Duration {
    let seconds = Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0));
    seconds + Duration::from_micros(u64::try_from(time.tv_usec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Instant;

    use super::*;
    use crate::net::namespace;

    #[test]
    fn programs_that_work_count_and_waiting_does_not() {
        // Programs of other tests count, too.
        let _turn = namespace::turn();
        let shell = |script: &str| {
            let (began, before) = (Instant::now(), cpu_time());
            let status = Command::new("sh").args(["-c", script]).status().unwrap();
            assert!(status.success());
            (began.elapsed(), cpu_time() - before)
        };
        let (length, work) = shell("i=0; while [ $i -lt 200000 ]; do i=$((i + 1)); done");
        assert!(work > Duration::from_millis(20), "{work:?} of {length:?}");
        let (length, waiting) = shell("sleep 0.5");
        assert!(waiting < length / 2, "{waiting:?} of {length:?}");
    }
}
