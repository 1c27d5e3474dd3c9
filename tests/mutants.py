#!/usr/bin/env python3
"""Breaks the code in places that matter, and checks that a test notices each time.

    tests/mutants.py [WORD...]    tries the mutants of tests/mutants.toml, or those whose
                                  description contains one of the words
    tests/mutants.py --table      prints them as a Markdown table

Works on a copy of the last commit, in target/mutants: the tree that it is called from stays as it
is. Prints one line for each mutant. Ends with 1 if a test does not notice one, if a piece of code
to replace is not there, or if a mutant does not compile. Needs Python 3.11, git and cargo.
"""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRATCH = ROOT / "target" / "mutants"
TREE = SCRATCH / "tree"
DEFAULT_CRATE = "lostlove-core"
# A mutant may loop without end, which is one way to notice it. The tests take seconds.
TEST_SECONDS = 120
BUILD_SECONDS = 1800
# A mutant leaves variables unused. Line numbers of a failure are of no use here.
ENVIRONMENT = os.environ | {
    "CARGO_TARGET_DIR": str(SCRATCH / "target"),
    "CARGO_INCREMENTAL": "1",
    "CARGO_PROFILE_DEV_DEBUG": "0",
    "RUSTFLAGS": "-A warnings",
}


class Problem(Exception):
    """Why a mutant says nothing about the tests."""


def main(arguments):
    mutants = tomllib.loads((ROOT / "tests/mutants.toml").read_text())["mutant"]
    if arguments == ["--table"]:
        return print_table(mutants)
    if any(argument.startswith("-") for argument in arguments):
        sys.exit(__doc__)
    if arguments:
        mutants = [m for m in mutants if any(word in m["breaks"] for word in arguments)]
    with scratch_tree():
        for crate in sorted({crate_of(mutant) for mutant in mutants}):
            check_tests(crate, {m["test"] for m in mutants if crate_of(m) == crate})
        failures = sum(not try_mutant(mutant) for mutant in mutants)
    print(f"{len(mutants) - failures} of {len(mutants)} mutants killed")
    return 1 if failures or not mutants else 0


def print_table(mutants):
    print("| what is broken | the test that notices |\n|---|---|")
    for mutant in mutants:
        print(f"| {mutant['breaks']} | `{crate_of(mutant)}`: `{mutant['test']}` |")
    return 0


@contextlib.contextmanager
def scratch_tree():
    """Checks the last commit out, where cargo finds what an earlier run has built."""
    remove_tree()
    git("worktree", "add", "--detach", str(TREE), "HEAD")
    try:
        yield
    finally:
        remove_tree()


def remove_tree():
    if TREE.exists():
        git("worktree", "remove", "--force", str(TREE))
    git("worktree", "prune")


def git(*arguments):
    subprocess.run(["git", "-C", str(ROOT), *arguments], check=True, capture_output=True)


def check_tests(crate, tests):
    """Without the mutants, each test must exist and pass, or its failing would mean nothing."""
    print(f"{crate}: builds, and runs the tests without a mutant", flush=True)
    status, output = cargo_test(crate, ["--exact", *sorted(tests)], BUILD_SECONDS)
    missing = [test for test in sorted(tests) if f"test {test} ... ok\n" not in output]
    if status != 0 or missing:
        sys.exit(f"{output}\nfails or does not exist even without a mutant: {missing}")


def try_mutant(mutant):
    """Whether the mutant was killed."""
    try:
        with applied(mutant):
            is_killed, verdict = judge(mutant)
    except Problem as problem:
        is_killed, verdict = False, str(problem)
    print(f"{mutant['breaks']}: {verdict}", flush=True)
    return is_killed


@contextlib.contextmanager
def applied(mutant):
    """Puts the mutant into the scratch tree for a while."""
    path = TREE / mutant["file"]
    original = path.read_text() if path.exists() else ""
    found, expected = original.count(mutant["old"]), mutant.get("times", 1)
    if found != expected:
        raise Problem(f"PATTERN found {found} times in {mutant['file']}, expected {expected}")
    path.write_text(original.replace(mutant["old"], mutant["new"]))
    try:
        yield
    finally:
        path.write_text(original)


def judge(mutant):
    crate, test = crate_of(mutant), mutant["test"]
    status, output = cargo(["test", "-p", crate, "--lib", "--no-run"], BUILD_SECONDS)
    if status != 0:
        raise Problem(f"DOES NOT COMPILE\n{output}")
    try:
        status, output = cargo_test(crate, ["--exact", test], TEST_SECONDS)
    except subprocess.TimeoutExpired:
        return True, f"killed by {test}, which does not end"
    if status != 0 and f"test {test} ... FAILED\n" in output:
        return True, f"killed by {test}"
    if status == 0:
        return False, f"SURVIVED {test}"
    raise Problem(f"UNCLEAR\n{output}")


def cargo_test(crate, arguments, seconds):
    return cargo(["test", "-p", crate, "--lib", "--", *arguments], seconds)


def cargo(arguments, seconds):
    """The exit status and the output of cargo, which does not outlive this call."""
    with subprocess.Popen(
        ["cargo", *arguments],
        cwd=TREE,
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, output


def crate_of(mutant):
    return mutant.get("crate", DEFAULT_CRATE)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
