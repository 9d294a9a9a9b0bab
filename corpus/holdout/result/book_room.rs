#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stay {
    pub room: u8,
    pub arrives: u16,
    pub leaves: u16,
    pub guests: u8,
}

#[derive(Debug, PartialEq, Eq)]
pub enum NoRoom {
    NotARoom,
    NoNight,
    TooMany { beds: u8 },
    Taken { until: u16 },
}

/// Books a stay if the room exists (its number and beds are in `rooms`), has beds for all, and is free; a day of departure
/// is free again. Answers how many stays are booked now, or, of several in the way, the latest departure.
// focal
pub fn book(booked: &mut Vec<Stay>, rooms: &[(u8, u8)], wanted: Stay) -> Result<usize, NoRoom> {
    let beds = rooms.iter().find(|(number, _)| *number == wanted.room).map(|(_, beds)| *beds);
    let beds = beds.ok_or(NoRoom::NotARoom)?;
    if wanted.arrives >= wanted.leaves || wanted.guests == 0 {
        return Err(NoRoom::NoNight);
    }
    if wanted.guests > beds {
        return Err(NoRoom::TooMany { beds });
    }
    let mut in_the_way: Option<u16> = None;
    for stay in booked.iter() {
        let same_room = stay.room == wanted.room;
        if same_room && stay.arrives < wanted.leaves && wanted.arrives < stay.leaves {
            in_the_way = match in_the_way {
                Some(until) if until >= stay.leaves => Some(until),
                _ => Some(stay.leaves),
            };
        }
    }
    if let Some(until) = in_the_way {
        return Err(NoRoom::Taken { until });
    }
    booked.push(wanted);
    Ok(booked.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOMS: [(u8, u8); 2] = [(1, 2), (7, 4)];

    fn stay(room: u8, arrives: u16, leaves: u16, guests: u8) -> Stay {
        Stay { room, arrives, leaves, guests }
    }

    #[test]
    fn test_free_rooms_are_booked() {
        let mut booked = Vec::new();
        assert_eq!(book(&mut booked, &ROOMS, stay(1, 3, 5, 2)), Ok(1));
        assert_eq!(book(&mut booked, &ROOMS, stay(7, 3, 5, 4)), Ok(2));
        assert_eq!(booked[1], stay(7, 3, 5, 4));
    }

    #[test]
    fn test_one_may_come_on_the_day_when_another_leaves() {
        let mut booked = vec![stay(1, 3, 5, 1)];
        assert_eq!(book(&mut booked, &ROOMS, stay(1, 5, 6, 1)), Ok(2));
        assert_eq!(book(&mut booked, &ROOMS, stay(1, 1, 3, 1)), Ok(3));
    }

    #[test]
    fn test_taken_until_the_latest_departure() {
        let mut booked = vec![stay(1, 3, 5, 1), stay(1, 8, 12, 1), stay(1, 6, 8, 1), stay(7, 1, 30, 1)];
        assert_eq!(book(&mut booked, &ROOMS, stay(1, 4, 10, 1)), Err(NoRoom::Taken { until: 12 }));
        assert_eq!(book(&mut booked, &ROOMS, stay(1, 2, 4, 1)), Err(NoRoom::Taken { until: 5 }));
        assert_eq!(booked.len(), 4);
    }

    #[test]
    fn test_rooms_that_do_not_exist() {
        assert_eq!(book(&mut Vec::new(), &ROOMS, stay(2, 1, 2, 1)), Err(NoRoom::NotARoom));
        assert_eq!(book(&mut Vec::new(), &[], stay(1, 1, 2, 1)), Err(NoRoom::NotARoom));
    }

    #[test]
    fn test_more_guests_than_beds() {
        assert_eq!(book(&mut Vec::new(), &ROOMS, stay(1, 1, 2, 3)), Err(NoRoom::TooMany { beds: 2 }));
    }

    #[test]
    fn test_no_night_and_nobody() {
        assert_eq!(book(&mut Vec::new(), &ROOMS, stay(1, 2, 2, 1)), Err(NoRoom::NoNight));
        assert_eq!(book(&mut Vec::new(), &ROOMS, stay(1, 3, 2, 1)), Err(NoRoom::NoNight));
        assert_eq!(book(&mut Vec::new(), &ROOMS, stay(1, 1, 2, 0)), Err(NoRoom::NoNight));
    }
}
