//! placeholder

pub mod demo;
pub mod netns;
