//! What is measured on clusters of its own, one after the other.

use anyhow::Result;

use super::failover;
use crate::cli::BenchArgs;

/// Whether any of it is asked for.
pub(crate) fn wanted(args: &BenchArgs) -> bool {
    args.figures.failover.is_some() || args.figures.steady.is_some()
}

/// Measures what is asked for.
pub(crate) async fn measure(args: &BenchArgs) -> Result<()> {
    if let Some(kills) = args.figures.failover {
        failover::measure(kills).await?;
    }
    if let Some(seconds) = args.figures.steady {
        failover::steady(seconds).await?;
    }
    Ok(())
}
