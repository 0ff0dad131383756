//! Every queue stays within its named bound.

use super::{Events, Facts};
use crate::history::Event;

/// See the [module](self).
pub fn check(events: &Events, _: &Facts) -> Result<(), String> {
    for (_, event) in events {
        if let Event::Queue { owner, name, length, bound } = event
            && length > bound
        {
            return Err(format!("{length} {name} at {owner}, where {bound} may be"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::made_up::judge;
    use super::*;

    #[test]
    fn a_queue_past_its_bound_is_rejected() {
        let queue = |length| Event::Queue { owner: 0, name: "frames", length, bound: 2 };
        assert_eq!(judge(check, &[queue(1), queue(2)]), Ok(()));
        assert!(judge(check, &[queue(3)]).is_err());
    }
}
