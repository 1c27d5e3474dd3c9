//! The driver's thread, and what it will be made of.

use std::io;
use std::sync::Arc;

use crate::mailbox::{LastWord, Mailbox, Order, Report};
use crate::threads::{Thread, Threads};
use crate::worker::{Worker, WorkerParts};

/// A driver and its worker that have not begun.
pub(super) struct PendingWorker {
    pub(super) parts: WorkerParts,
    pub(super) drive: Box<dyn FnOnce(Worker) -> io::Result<Worker> + Send>,
}

impl PendingWorker {
    /// Leaves an order for when it begins, if it is about what the worker is made of. All else is of what
    /// is not there yet.
    pub(super) fn order(&self, order: Order) {
        if matches!(order, Order::Reconfigure(_) | Order::PeersChanged) {
            self.parts.orders.post(order);
        }
    }

    pub(super) fn start(self, threads: &Threads) -> io::Result<WorkerThread> {
        let Self { parts, drive } = self;
        let orders = Arc::clone(&parts.orders);
        let last_word = LastWord::new(Arc::clone(&parts.reports), Report::WorkerEnded);
        let thread = threads.spawn("worker", move || {
            let _last_word = last_word;
            drive(Worker::new(parts))
        })?;
        Ok(WorkerThread { orders, thread })
    }
}

/// A driver and its worker.
pub(super) struct WorkerThread {
    pub(super) orders: Arc<Mailbox<Order>>,
    pub(super) thread: Thread<io::Result<Worker>>,
}
