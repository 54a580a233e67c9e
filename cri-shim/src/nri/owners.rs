//! Which plugin set what: no two may set the same, unless the later one says that it takes the earlier one's place.

use std::collections::BTreeMap;

use rrun_proto::nri::{CompoundFieldOwners, Field, FieldOwners, OwningPlugins};

/// Plugins by what they set: a container, a field, and where the field has many values, the key of one (else empty).
#[derive(Debug, Default)]
pub(super) struct Owners(BTreeMap<(String, i32, String), Owner>);

#[derive(Debug)]
enum Owner {
    /// It set the value.
    Set(String),
    /// It removed the value, and may set it anew.
    Cleared(String),
}

/// Fields with many values.
const COMPOUND: [Field; 11] = [
    Field::Annotations,
    Field::Mounts,
    Field::Devices,
    Field::CdiDevices,
    Field::Env,
    Field::HugepageLimits,
    Field::CgroupsUnified,
    Field::Rlimits,
    Field::Namespace,
    Field::Sysctl,
    Field::LinuxNetDevices,
];

impl Owners {
    /// Notes that `plugin` sets a value.
    ///
    /// # Errors
    /// Text that names both plugins, if another one did.
    pub(super) fn claim(&mut self, container: &str, field: Field, key: &str, plugin: &str) -> Result<(), String> {
        let place = (container.to_owned(), i32::from(field), key.to_owned());
        match self.0.get(&place) {
            Some(Owner::Set(other) | Owner::Cleared(other)) if other != plugin => {
                let of = if key.is_empty() { String::new() } else { format!(" {key:?}") };
                Err(format!("plugins {other} and {plugin} both set {}{of} of container {container}", field.as_str_name()))
            }
            _ => {
                self.0.insert(place, Owner::Set(plugin.to_owned()));
                Ok(())
            }
        }
    }

    /// Notes that `plugin` removes a value, whoever set it.
    pub(super) fn clear(&mut self, container: &str, field: Field, key: &str, plugin: &str) {
        self.0.insert((container.to_owned(), i32::from(field), key.to_owned()), Owner::Cleared(plugin.to_owned()));
    }

    /// Notes one more plugin of a field that takes from all: hooks.
    pub(super) fn share(&mut self, container: &str, field: Field, plugin: &str) {
        let place = (container.to_owned(), i32::from(field), String::new());
        let owner = match self.0.get(&place) {
            Some(Owner::Set(others)) => format!("{others},{plugin}"),
            _ => plugin.to_owned(),
        };
        self.0.insert(place, Owner::Set(owner));
    }

    /// As validators see it.
    pub(super) fn message(&self) -> OwningPlugins {
        let mut owners = BTreeMap::<String, FieldOwners>::new();
        for ((container, field, key), owner) in &self.0 {
            let owner = match owner {
                Owner::Set(plugin) => plugin.clone(),
                Owner::Cleared(plugin) => format!("-{plugin}"),
            };
            let fields = owners.entry(container.clone()).or_default();
            if COMPOUND.iter().any(|one| i32::from(*one) == *field) {
                let compound: &mut CompoundFieldOwners = fields.compound.entry(*field).or_default();
                compound.owners.insert(key.clone(), owner);
            } else {
                fields.simple.insert(*field, owner);
            }
        }
        OwningPlugins { owners }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_plugin_per_value() {
        let mut owners = Owners::default();
        owners.claim("c", Field::Env, "A", "10-a").unwrap();
        owners.claim("c", Field::Env, "B", "20-b").unwrap();
        owners.claim("d", Field::Env, "A", "20-b").unwrap();
        let error = owners.claim("c", Field::Env, "A", "20-b").unwrap_err();
        assert_eq!(error, "plugins 10-a and 20-b both set Env \"A\" of container c");
        owners.clear("c", Field::Env, "A", "20-b");
        assert!(owners.claim("c", Field::Env, "A", "30-c").is_err(), "20-b took it away to set it itself");
        owners.claim("c", Field::Env, "A", "20-b").unwrap();
        let message = owners.message();
        assert_eq!(message.owners["c"].compound[&6].owners["A"], "20-b");
        assert_eq!(message.owners["d"].compound[&6].owners["A"], "20-b");
    }

    #[test]
    fn hooks_have_many() {
        let mut owners = Owners::default();
        owners.share("c", Field::OciHooks, "10-a");
        owners.share("c", Field::OciHooks, "20-b");
        assert_eq!(owners.message().owners["c"].simple[&3], "10-a,20-b");
    }
}
