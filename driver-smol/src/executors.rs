//! The tasks of sources and those of connections, by turns.

use std::cell::Cell;

use smol::LocalExecutor;
use smol::future::or;

/// Runs tasks on the calling thread. Those of sources, which are few, have a queue of their own: behind
/// what many connections have sent, the TUN device would wait for all of them, and its queue is short.
#[derive(Default)]
pub(crate) struct Executors<'a> {
    /// Tasks of sources.
    pub(crate) sources: LocalExecutor<'a>,
    /// Tasks of connections.
    pub(crate) connections: LocalExecutor<'a>,
    are_sources_next: Cell<bool>,
}

impl Executors<'_> {
    /// Runs one task as soon as one is ready. Where there are some of both kinds, they go first by turns.
    pub(crate) async fn tick(&self) {
        let are_sources_first = self.are_sources_next.replace(!self.are_sources_next.get());
        let (sources, connections) = (self.sources.tick(), self.connections.tick());
        if are_sources_first {
            or(sources, connections).await;
        } else {
            or(connections, sources).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use smol::future::yield_now;

    use super::*;

    #[test]
    fn a_source_has_its_turn_after_each_connection_however_many_are_ready() {
        let order = Cell::new(String::new());
        let run = async |what: char| {
            for _ in 0..4 {
                let mut told = order.take();
                told.push(what);
                order.set(told);
                yield_now().await;
            }
        };
        let executors = Executors::default();
        for _ in 0..100 {
            executors.connections.spawn(run('c')).detach();
        }
        executors.sources.spawn(run('s')).detach();
        smol::block_on(async {
            for _ in 0..10 {
                executors.tick().await;
            }
        });
        drop(executors);
        let order = order.take();
        // In its last turn the source ends.
        assert_eq!(order, "cscscscsc");
    }

    #[test]
    fn sources_alone_and_connections_alone_need_not_wait_for_the_others() {
        for is_source in [true, false] {
            let ran = Cell::new(0);
            let executors = Executors::default();
            let task = async {
                for _ in 0..5 {
                    ran.set(ran.get() + 1);
                    yield_now().await;
                }
            };
            if is_source {
                executors.sources.spawn(task).detach();
            } else {
                executors.connections.spawn(task).detach();
            }
            smol::block_on(async {
                for _ in 0..5 {
                    executors.tick().await;
                }
            });
            drop(executors);
            assert_eq!(ran.get(), 5);
        }
    }
}
