//! Executing the order anew gives every reply that a client accepted.

use std::collections::BTreeMap;

use protocol::application::{Application, Delivered};

use super::{Events, Facts};
use crate::application::Tally;
use crate::history::Event;

/// See the [module](self).
pub fn check(events: &Events, _: &Facts) -> Result<(), String> {
    let mut order = BTreeMap::new();
    for (_, event) in events {
        if let Event::Delivered { order: place, id, time, payload, .. } = event {
            order.entry(*place).or_insert((*id, *time, payload));
        }
    }
    let mut application = Tally::default();
    let execute = |(order, (id, time, payload)): (&_, &(_, _, &Vec<u8>))| {
        let message = Delivered { order: *order, id: *id, time: *time, payload };
        (*order, application.execute(&message))
    };
    let replies: BTreeMap<_, _> = order.iter().map(execute).collect();
    for (_, event) in events {
        if let Event::Answered { client, order, reply, .. } = event
            && reply.as_ref() != replies.get(order)
        {
            return Err(format!(
                "client {client} accepted {reply:?} as the reply to order {order}"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::made_up::{answered, delivered, id, judge};
    use super::*;
    use shared_registers::ids::{Micros, OrderNumber};

    #[test]
    fn a_reply_that_no_execution_gives_is_rejected() {
        let (order, id, time) = (OrderNumber(1), id(0, 1), Micros(1));
        let message = Delivered { order, id, time, payload: b"a" };
        let reply = Tally::default().execute(&message);
        let one = delivered(0, 1, id, b"a");
        assert_eq!(judge(check, &[one.clone(), answered(1, id, 1, &reply)]), Ok(()));
        assert!(judge(check, &[one, answered(1, id, 1, b"other")]).is_err());
    }
}
