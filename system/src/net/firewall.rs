//! Our firewall tables, as they were made and as they are.

use super::change::Change;
use super::error::NetError;
use super::guard::Guard;
use super::nft::{self, Family};
use super::{nfnetlink, setup::Paths};

/// A table of ours.
#[derive(Debug)]
pub(super) struct Table {
    change: Change,
    family: Family,
    name: String,
    chains: String,
    /// How it was listed once it was made. Of one that is new the first look finds out, so that whoever waits
    /// for the tunnel does not wait for another program; of one that was put back it is known at once, as
    /// who took it away may be about to do so again.
    listing: Option<String>,
    /// The generation of all rules in which it was like this; none where the kernel does not say.
    generation: Option<u32>,
}

impl Table {
    /// Installs it, in place of one of the same name.
    fn install(&mut self, paths: &Paths) -> Result<(), NetError> {
        nft::install(paths, self.family, &self.name, &self.chains)?;
        self.generation = nfnetlink::generation().ok();
        self.listing = None;
        Ok(())
    }

    /// Whether it is as it was made, which need not be looked at if no rule has changed since.
    fn is_intact(&mut self, generation: Option<u32>, paths: &Paths) -> Result<bool, NetError> {
        if self.listing.is_some() && generation.is_some() && self.generation == generation {
            return Ok(true);
        }
        let Some(listing) = nft::list(paths, self.family, &self.name)? else {
            return Ok(false);
        };
        let is_intact = *self.listing.get_or_insert_with(|| listing.clone()) == listing;
        if is_intact {
            self.generation = generation;
        }
        Ok(is_intact)
    }
}

impl Guard {
    /// Records a table, and installs it in place of one of the same name.
    pub(super) fn install(
        &mut self,
        change: &Change,
        family: Family,
        name: &str,
        chains: String,
    ) -> Result<(), NetError> {
        let mut table = Table {
            change: change.clone(),
            family,
            name: name.to_owned(),
            chains,
            listing: None,
            generation: None,
        };
        let installed = self.install_table(&mut table);
        self.overdue.retain(|known| known.change != *change);
        if installed.is_err() {
            self.overdue.push(table);
            return installed;
        }
        self.tables.retain(|known| known.change != *change);
        self.tables.push(table);
        Ok(())
    }

    fn install_table(&mut self, table: &mut Table) -> Result<(), NetError> {
        let change = table.change.clone();
        self.make_with(&change, |guard| guard.renew(table))
    }

    /// Tries tables again that could not be installed so far, and that whoever wants them goes on without.
    pub(super) fn install_overdue(&mut self) {
        for mut table in std::mem::take(&mut self.overdue) {
            let name = format!("{} {}", table.family.as_str(), table.name);
            match self.install_table(&mut table) {
                Ok(()) => {
                    tracing::info!(table = name, "the firewall's table is installed now");
                    self.tables.retain(|known| known.change != table.change);
                    self.tables.push(table);
                }
                Err(error) => {
                    tracing::debug!(%error, table = name, "the firewall's table is still missing");
                    self.overdue.push(table);
                }
            }
        }
    }

    /// Installs a table that is recorded, as it was made.
    pub(super) fn put_table_back(&mut self, change: &Change) -> Result<(), NetError> {
        let index = self.tables.iter().position(|table| table.change == *change);
        let Some(index) = index else { return Ok(()) };
        let mut table = self.tables.swap_remove(index);
        let result = self.renew(&mut table);
        if result.is_ok() {
            table.listing = nft::list(&self.paths, table.family, &table.name).unwrap_or_default();
        }
        self.tables.push(table);
        result
    }

    /// Installs a table. The others need no look if nobody else has changed a rule meanwhile.
    fn renew(&mut self, table: &mut Table) -> Result<(), NetError> {
        let before = nfnetlink::generation().ok();
        table.install(&self.paths)?;
        let is_ours = before.map(|before| before.wrapping_add(1)) == table.generation;
        if before.is_some() && is_ours {
            let others = self.tables.iter_mut();
            for other in others.filter(|other| other.generation == before) {
                other.generation = table.generation;
            }
        }
        Ok(())
    }

    /// Whether a device's table could not be installed as it should be.
    pub(super) fn lacks_table(&self, tun: &str) -> bool {
        let name = nft::table_name(tun);
        let is_it = |table: &Table| table.family == Family::Inet && table.name == name;
        self.overdue.iter().any(is_it)
    }

    /// The tables that are no longer as they were made.
    pub(super) fn lost_tables(&mut self) -> Result<Vec<Change>, NetError> {
        if self.tables.is_empty() {
            return Ok(Vec::new());
        }
        let generation = nfnetlink::generation().ok();
        let mut lost = Vec::new();
        for table in &mut self.tables {
            if !table.is_intact(generation, &self.paths)? {
                lost.push(table.change.clone());
            }
        }
        Ok(lost)
    }

    /// Forgets a table that was taken back.
    pub(super) fn forget_table(&mut self, change: &Change) {
        self.tables.retain(|table| table.change != *change);
        self.overdue.retain(|table| table.change != *change);
    }
}
