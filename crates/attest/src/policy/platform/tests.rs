//! Each refusal of a section of `[evidence]`, from a platform that differs in one thing.

use crate::Register;
use crate::azure::{AzurePlatform, AzureProcessor};
use crate::intel::{IntelPlatform, TcbStatus};
use crate::nitro::NitroPlatform;
use crate::nvidia::{NvidiaDevice, NvidiaMode, NvidiaPlatform, Reference};
use crate::policy::judge_tests::{claims, platform, policy};
use crate::sgx::{SgxMemory, SgxPlatform};
use crate::snp::SnpPlatform;
use crate::tdx::TdxPlatform;
use crate::tpm::TpmPlatform;
use crate::{Claims, Measurement, Platform, Refusal, TeeKind, UnixTime};

#[test]
fn each_component_of_the_security_version_has_its_own_floor() {
    let floor = |line: &str, versions: &str| {
        policy(&format!("snp.minimum-tcb.{line} = {{ {versions} }}"), "").judge_claims(&claims())
    };
    let exact = "bootloader = 9, tee = 0, snp = 23, microcode = 72";
    assert_eq!(floor("genoa", exact), Ok(()));
    // Another line's floor says nothing of this one.
    assert_eq!(floor("milan", "snp = 255"), Ok(()));
    for (raised, minimum) in [
        ("fmc = 1", "fmc 1, bootloader 0, tee 0, snp 0, microcode 0"),
        (
            "bootloader = 10",
            "bootloader 10, tee 0, snp 0, microcode 0",
        ),
        ("tee = 1", "bootloader 0, tee 1, snp 0, microcode 0"),
        ("snp = 24", "bootloader 0, tee 0, snp 24, microcode 0"),
        ("microcode = 73", "bootloader 0, tee 0, snp 0, microcode 73"),
    ] {
        assert_eq!(
            floor("genoa", raised),
            Err(Refusal::Tcb {
                found: "bootloader 9, tee 0, snp 23, microcode 72".to_owned(),
                minimum: minimum.to_owned()
            })
        );
    }
}

/// What is refused of a platform by a policy, and by none without that line.
fn refusal_of_platform(line: &str, change: impl Fn(&mut SnpPlatform)) -> (String, String, String) {
    let mut changed = platform();
    change(&mut changed);
    let claims = Claims {
        platform: Platform::Snp(Box::new(changed)),
        ..claims()
    };
    match policy(line, "").judge_claims(&claims) {
        Err(Refusal::Platform {
            field,
            found,
            accepted,
        }) => (field.to_owned(), found, accepted),
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn without_a_section_privilege_levels_and_migration_agents_are_refused() {
    let said = |field: &str, found: &str, accepted: &str| {
        (field.to_owned(), found.to_owned(), accepted.to_owned())
    };
    assert_eq!(
        refusal_of_platform("", |platform| platform.vmpl = 1),
        said("snp.vmpls", "1", "0")
    );
    assert_eq!(
        refusal_of_platform("", |platform| platform.migration = true),
        said("snp.allow-migration", "true", "false")
    );
}

#[test]
fn what_a_section_names_is_required_of_the_platform() {
    let chip = "dd".repeat(64);
    let digest = "1e".repeat(48);
    for (line, field, found, accepted) in [
        (
            "products = [\"milan\", \"turin\"]",
            "products",
            "genoa",
            "milan, turin",
        ),
        ("endorsements = [\"vlek\"]", "endorsements", "vcek", "vlek"),
        (
            &format!("chip-ids = [\"{chip}\"]"),
            "chip-ids",
            &"cc".repeat(64),
            "1 that are not it",
        ),
        ("vmpls = [2, 3]", "vmpls", "0", "2, 3"),
        (
            "minimum-guest-svn = 3",
            "minimum-guest-svn",
            "2",
            "3 or more",
        ),
        (
            &format!("id-key-digests = [\"{digest}\"]"),
            "id-key-digests",
            &"1d".repeat(48),
            &digest,
        ),
        ("allow-smt = false", "allow-smt", "true", "false"),
        (
            "require-ciphertext-hiding = true",
            "require-ciphertext-hiding",
            "false",
            "true",
        ),
        (
            "require-alias-check = true",
            "require-alias-check",
            "false",
            "true",
        ),
    ] {
        assert_eq!(
            refusal_of_platform(&format!("snp.{line}"), |_| ()),
            (
                format!("snp.{field}"),
                found.to_owned(),
                accepted.to_owned()
            )
        );
    }
    let hidden = refusal_of_platform(&format!("snp.chip-ids = [\"{chip}\"]"), |platform| {
        platform.chip_id = None;
    });
    assert_eq!(hidden.1, "a chip that is hidden");
}

#[test]
fn what_a_section_names_is_accepted() {
    let section = format!(
        "[evidence.snp]\nproducts = [\"genoa\"]\nendorsements = [\"vcek\"]\nchip-ids = [\"{}\"]\n\
         vmpls = [0]\nminimum-guest-svn = 2\nid-key-digests = [\"{}\"]\nallow-smt = true\n",
        "cc".repeat(64),
        "1d".repeat(48)
    );
    assert_eq!(policy(&section, "").judge_claims(&claims()), Ok(()));
}

fn intel() -> IntelPlatform {
    IntelPlatform {
        tcb_status: TcbStatus::UpToDate,
        tcb_date: UnixTime(1_700_000_000),
        advisories: Vec::new(),
        evaluation_number: 17,
        fmspc: [1; 6].into(),
    }
}

fn guest() -> TdxPlatform {
    TdxPlatform {
        intel: intel(),
        rtmr: [
            [1; 48].into(),
            [2; 48].into(),
            [3; 48].into(),
            [4; 48].into(),
        ],
        mr_seam: [5; 48].into(),
        mr_config_id: [0; 48].into(),
        mr_owner: [6; 48].into(),
        mr_owner_config: [0; 48].into(),
        attributes: [0, 0, 0, 0x10, 0, 0, 0, 0].into(),
        xfam: [0; 8].into(),
        quote_version: 4,
        event_log_entries: None,
    }
}

fn enclave() -> SgxPlatform {
    SgxPlatform {
        intel: intel(),
        signer: [0x51; 32].into(),
        product_id: 7,
        svn: 3,
        attributes: [0; 16].into(),
        memory: SgxMemory::Scalable,
    }
}

fn tdx_claims(platform: TdxPlatform) -> Claims {
    Claims {
        tee: TeeKind::Tdx,
        platform: Platform::Tdx(Box::new(platform)),
        ..claims()
    }
}

fn sgx_claims(platform: SgxPlatform) -> Claims {
    Claims {
        tee: TeeKind::Sgx,
        platform: Platform::Sgx(Box::new(platform)),
        ..claims()
    }
}

#[test]
fn without_a_section_only_a_platform_that_is_up_to_date_is_accepted() {
    let status = |status| IntelPlatform {
        tcb_status: status,
        advisories: vec!["INTEL-SA-00001".to_owned(), "INTEL-SA-00002".to_owned()],
        ..intel()
    };
    for found in [
        TcbStatus::SWHardeningNeeded,
        TcbStatus::ConfigurationNeeded,
        TcbStatus::ConfigurationAndSWHardeningNeeded,
        TcbStatus::OutOfDate,
        TcbStatus::OutOfDateConfigurationNeeded,
        TcbStatus::TDRelaunchAdvised,
        TcbStatus::TDRelaunchAdvisedConfigurationNeeded,
    ] {
        let guest = TdxPlatform {
            intel: status(found),
            ..guest()
        };
        let enclave = SgxPlatform {
            intel: status(found),
            ..enclave()
        };
        for (claims, section) in [(tdx_claims(guest), "tdx"), (sgx_claims(enclave), "sgx")] {
            let refusal = policy("", "").judge_claims(&claims).unwrap_err();
            assert_eq!(
                refusal.to_string(),
                format!(
                    "the vendor says the platform's TCB is {found} (INTEL-SA-00001, \
                     INTEL-SA-00002), below the policy's floor: {section}.tcb-statuses accepts \
                     UpToDate"
                )
            );
            let accepting = policy(&format!("{section}.tcb-statuses = [\"{found}\"]"), "");
            assert_eq!(accepting.judge_claims(&claims), Ok(()));
        }
    }
    assert_eq!(policy("", "").judge_claims(&tdx_claims(guest())), Ok(()));
    assert_eq!(policy("", "").judge_claims(&sgx_claims(enclave())), Ok(()));
}

#[test]
fn what_a_section_names_is_required_of_a_guest() {
    let other = "00".repeat(48);
    let listed = |byte: u8| hex::encode([byte; 48]);
    for (field, found) in [
        ("rtmr0", 1),
        ("rtmr1", 2),
        ("rtmr2", 3),
        ("rtmr3", 4),
        ("modules", 5),
        ("owners", 6),
    ] {
        let judge = |digest: &str| {
            policy(&format!("tdx.{field} = [\"{digest}\"]"), "").judge_claims(&tdx_claims(guest()))
        };
        assert_eq!(judge(&listed(found)), Ok(()));
        let refusal = judge(&other).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            format!(
                "the evidence has {} for tdx.{field}, the policy accepts {other}",
                listed(found)
            )
        );
    }
    let judge = |number| {
        policy(&format!("tdx.minimum-evaluation-number = {number}"), "")
            .judge_claims(&tdx_claims(guest()))
    };
    assert_eq!(judge(17), Ok(()));
    assert_eq!(
        judge(18).unwrap_err().to_string(),
        "the evidence has 17 for tdx.minimum-evaluation-number, the policy accepts 18 or more"
    );
}

#[test]
fn what_a_section_names_is_required_of_an_enclave() {
    let judge = |line: &str| policy(line, "").judge_claims(&sgx_claims(enclave()));
    assert_eq!(judge("sgx.memory = [\"scalable\"]"), Ok(()));
    assert_eq!(
        judge("sgx.memory = [\"standard\"]")
            .unwrap_err()
            .to_string(),
        "the evidence has scalable for sgx.memory, the policy accepts standard"
    );
    assert_eq!(
        judge("sgx.minimum-evaluation-number = 18")
            .unwrap_err()
            .to_string(),
        "the evidence has 17 for sgx.minimum-evaluation-number, the policy accepts 18 or more"
    );
}

#[test]
fn an_enclave_may_be_accepted_by_its_signer_product_and_version_together() {
    let unmeasured = || Claims {
        measurement: Measurement::from([0xee; 32]),
        ..sgx_claims(enclave())
    };
    let judge = |signer: u8, product: u16, svn: u16| {
        let signer = hex::encode([signer; 32]);
        let line = format!(
            "sgx.signers = [{{ signer = \"{signer}\", product-id = {product}, minimum-svn = {svn} }}]"
        );
        policy(&line, "").judge_claims(&unmeasured())
    };
    assert_eq!(judge(0x51, 7, 3), Ok(()));
    assert_eq!(judge(0x51, 7, 0), Ok(()));
    let refused = Err(Refusal::Measurement {
        found: Measurement::from([0xee; 32]),
    });
    assert_eq!(judge(0x52, 7, 3), refused);
    assert_eq!(judge(0x51, 8, 3), refused);
    assert_eq!(judge(0x51, 7, 4), refused);
    // A signer of enclaves says nothing of a guest.
    let guest = Claims {
        measurement: Measurement::from([0xee; 32]),
        ..tdx_claims(guest())
    };
    let line = format!(
        "sgx.signers = [{{ signer = \"{}\", product-id = 7, minimum-svn = 0 }}]",
        hex::encode([0x51; 32])
    );
    assert_eq!(policy(&line, "").judge_claims(&guest), refused);
}

#[test]
fn a_register_that_a_section_names_is_required_of_a_nitro_enclave() {
    let platform = NitroPlatform {
        module_id: "i-1-enc2".to_owned(),
        pcrs: [(8, [0xa8; 48]), (3, [0xa3; 48])]
            .map(|(number, value)| (Register::new(number).unwrap(), value.into()))
            .into(),
        timestamp: UnixTime(1_700_000_000),
    };
    let claims = Claims {
        tee: TeeKind::Nitro,
        platform: Platform::Nitro(Box::new(platform)),
        ..claims()
    };
    let listed = |byte: u8| hex::encode([byte; 48]);
    let judge = |register: &str, digest: &str| {
        policy(&format!("nitro.pcrs.{register} = [\"{digest}\"]"), "").judge_claims(&claims)
    };
    assert_eq!(judge("pcr8", &listed(0xa8)), Ok(()));
    for (register, found) in [
        ("pcr8", format!("pcr8 = {}", listed(0xa8))),
        ("pcr9", "no pcr9".to_owned()),
    ] {
        let other = listed(0xa9);
        assert_eq!(
            judge(register, &other).unwrap_err().to_string(),
            format!("the evidence has {found} for nitro.pcrs, the policy accepts {other}")
        );
    }
    for name in ["8", "pcr32", "pcr08", "pcr+8", "PCR8"] {
        let text = format!("format = 1\n[evidence.nitro.pcrs]\n\"{name}\" = []\n");
        assert_eq!(
            crate::Policy::parse(&text).unwrap_err().to_string(),
            format!("line 3: {name:?} is no register: expected pcr0 to pcr31")
        );
    }
}

fn tpm_claims(platform: fn(Box<TpmPlatform>) -> Platform, tee: TeeKind) -> Claims {
    let found = TpmPlatform {
        attestation_key: [0xab; 32].into(),
        certified_by: Some([0x70; 32].into()),
        pcrs: [4, 17, 18]
            .map(|number| (Register::new(number).unwrap(), [number as u8; 32].into()))
            .into(),
        firmware_version: 1,
        resets: 2,
        restarts: 3,
        event_log_entries: None,
    };
    Claims {
        tee,
        measurement: Measurement::from([0xee; 32]),
        platform: platform(Box::new(found)),
        ..claims()
    }
}

#[test]
fn a_key_of_a_tpm_is_accepted_if_it_or_its_root_is_listed() {
    let (key, root, other) = ("ab".repeat(32), "70".repeat(32), "11".repeat(32));
    for (claims, section) in [
        (tpm_claims(Platform::Tpm, TeeKind::Tpm), "tpm"),
        (tpm_claims(Platform::Txt, TeeKind::Txt), "txt"),
    ] {
        let registers = [17, 18]
            .map(|number: u8| format!("pcr{number} = [\"{}\"]", hex::encode([number; 32])))
            .join(", ");
        let judge = |listed: &str| {
            policy(
                &format!(
                    "tee = [\"{section}\"]\n{section} = {{ {listed}pcrs = {{ {registers} }} }}"
                ),
                "",
            )
            .judge_claims(&claims)
        };
        assert_eq!(judge(&format!("attestation-keys = [\"{key}\"], ")), Ok(()));
        assert_eq!(judge(&format!("roots = [\"{root}\"], ")), Ok(()));
        for none in [
            String::new(),
            format!("attestation-keys = [\"{root}\"], roots = [\"{key}\"], "),
            format!("attestation-keys = [\"{other}\"], roots = [\"{other}\"], "),
        ] {
            let refused = judge(&none).unwrap_err().to_string();
            let said = format!(
                "the evidence has {key}, certified by {root}, for {section}.attestation-keys"
            );
            assert!(refused.starts_with(&said), "{refused}");
        }
    }
}

#[test]
fn registers_stand_for_the_measurement_only_where_they_tell_what_was_started() {
    let listed = |number: u8| format!("pcrs.pcr{number} = [\"{}\"]", hex::encode([number; 32]));
    let judge = |claims: &Claims, section: &str, registers: &[u8]| {
        let lines: Vec<String> = registers.iter().map(|number| listed(*number)).collect();
        let fields = [
            vec![format!("attestation-keys = [\"{}\"]", "ab".repeat(32))],
            lines,
        ]
        .concat()
        .join(", ");
        let section = format!("tee = [\"{section}\"]\n{section} = {{ {fields} }}");
        policy(&section, "").judge_claims(claims)
    };
    let refused = Err(Refusal::Measurement {
        found: Measurement::from([0xee; 32]),
    });
    let tpm = tpm_claims(Platform::Tpm, TeeKind::Tpm);
    assert_eq!(judge(&tpm, "tpm", &[4]), Ok(()));
    assert_eq!(judge(&tpm, "tpm", &[]), refused);
    let txt = tpm_claims(Platform::Txt, TeeKind::Txt);
    assert_eq!(judge(&txt, "txt", &[17, 18]), Ok(()));
    for registers in [&[][..], &[17], &[18], &[4]] {
        assert_eq!(judge(&txt, "txt", registers), refused);
    }
    // A register that was not quoted holds nothing that could be listed.
    let absent = judge(&tpm, "tpm", &[5]).unwrap_err().to_string();
    assert_eq!(
        absent,
        format!(
            "the evidence has no pcr5 for tpm.pcrs, the policy accepts {}",
            hex::encode([5; 32])
        )
    );
}

/// A policy that names the machine's kind, its paravisor and what it started, and more.
fn judge_azure(tee: TeeKind, processor: AzureProcessor, lines: &str) -> Result<(), Refusal> {
    let claims = Claims {
        tee,
        measurement: Measurement::from([0xee; 32]),
        platform: Platform::Azure(Box::new(AzurePlatform {
            paravisor: Measurement::from([0x9a; 48]),
            pcrs: [(Register::new(4).unwrap(), [4; 32].into())].into(),
            secure_boot: false,
            console: true,
            vm_id: "1".to_owned(),
            resets: 0,
            restarts: 0,
            processor,
        })),
        ..claims()
    };
    let started = format!(
        "{tee}.paravisors = [\"{}\"]\n{tee}.pcrs.pcr4 = [\"{}\"]",
        hex::encode([0x9a; 48]),
        hex::encode([4; 32])
    );
    policy(&format!("{started}\n{lines}"), "").judge_claims(&claims)
}

#[test]
fn a_machine_of_azures_is_judged_by_its_own_section_and_by_its_processors() {
    let refused = |field: &'static str, found: &str, accepted: &str| {
        Err(Refusal::Platform {
            field,
            found: found.to_owned(),
            accepted: accepted.to_owned(),
        })
    };
    let snp = |lines: &str| {
        let processor = AzureProcessor::Snp(Box::new(platform()));
        judge_azure(TeeKind::AzSnpVtpm, processor, lines)
    };
    let tdx = |lines: &str| {
        let processor = AzureProcessor::Tdx(Box::new(guest()));
        judge_azure(TeeKind::AzTdxVtpm, processor, lines)
    };
    let without = "az-snp-vtpm.require-secure-boot = false\n";
    assert_eq!(
        snp(""),
        refused("az-snp-vtpm.require-secure-boot", "false", "true")
    );
    assert_eq!(snp(without), Ok(()));
    assert_eq!(
        snp(&format!("{without}az-snp-vtpm.allow-console = false")),
        refused("az-snp-vtpm.allow-console", "true", "false")
    );
    assert_eq!(
        snp(&format!("{without}snp.products = [\"milan\"]")),
        refused("snp.products", "genoa", "milan")
    );
    let without = "az-tdx-vtpm.require-secure-boot = false\n";
    assert_eq!(
        tdx(""),
        refused("az-tdx-vtpm.require-secure-boot", "false", "true")
    );
    assert_eq!(tdx(without), Ok(()));
    assert_eq!(
        tdx(&format!("{without}tdx.minimum-evaluation-number = 18")),
        refused("tdx.minimum-evaluation-number", "17", "18 or more")
    );
    // Each kind has a section of its own.
    let other = "az-tdx-vtpm.require-secure-boot = false";
    assert_eq!(
        snp(other),
        refused("az-snp-vtpm.require-secure-boot", "false", "true")
    );
}

/// GPUs that measured `0x02` as measurement 2, compared with manifests or not.
fn gpu_claims(keys: &[u8], compared: Reference) -> Claims {
    let device = |key: &u8| NvidiaDevice {
        key: [*key; 48].into(),
        chip: "GH100".to_owned(),
        driver_version: "590.12".to_owned(),
        vbios_version: "96.00.a5.00.01".to_owned(),
        firmware: [0xf1; 48].into(),
        mode: NvidiaMode::SinglePassThrough,
        measurements: [("2".to_owned().try_into().unwrap(), [2; 48].into())].into(),
        driver_reference: compared,
        vbios_reference: Reference::Matched,
    };
    Claims {
        tee: TeeKind::Nvidia,
        measurement: Measurement::from([0xee; 48]),
        platform: Platform::Nvidia(Box::new(NvidiaPlatform {
            devices: keys.iter().map(device).collect(),
        })),
        ..claims()
    }
}

/// A policy of GPUs beside the processor that the other tests have.
fn judge_gpus(section: &str, gpus: Claims) -> Result<(), String> {
    let together = Claims {
        additional: vec![gpus],
        ..claims()
    };
    let text = format!("additional = [\"nvidia\"]\nnvidia = {{ {section} }}");
    let judged = policy(&text, "").judge_claims(&together);
    judged.map_err(|refusal| refusal.to_string())
}

#[test]
fn a_gpu_is_accepted_if_what_it_measured_is_nvidias_or_listed() {
    let compared = || gpu_claims(&[1], Reference::Matched);
    let unknown = || gpu_claims(&[1], Reference::None);
    let two = "02".repeat(48);
    let three = "03".repeat(48);
    assert_eq!(judge_gpus("", compared()), Ok(()));
    assert_eq!(
        judge_gpus("", unknown()).unwrap_err(),
        "the evidence has no manifest of its driver in the collateral for \
         nvidia.require-reference, the policy accepts measurements that were compared with \
         NVIDIA's"
    );
    let listed = |value: &str| format!("require-reference = false, measurements.2 = [\"{value}\"]");
    assert_eq!(judge_gpus(&listed(&two), unknown()), Ok(()));
    assert_eq!(
        judge_gpus(&listed(&three), unknown()).unwrap_err(),
        format!("the evidence has 2 = {two} for nvidia.measurements, the policy accepts {three}")
    );
    let absent = format!("measurements.3 = [\"{two}\"]");
    assert_eq!(
        judge_gpus(&absent, compared()).unwrap_err(),
        format!(
            "the evidence has no measurement 3 for nvidia.measurements, the policy accepts {two}"
        )
    );
    let refused = judge_gpus("require-reference = false", unknown()).unwrap_err();
    assert!(refused.ends_with("is not in the policy"), "{refused}");
}

#[test]
fn each_field_of_a_gpu_is_judged() {
    for (section, said) in [
        (
            "minimum-devices = 3",
            "2 for nvidia.minimum-devices, the policy accepts 3 or more",
        ),
        (
            "driver-versions = [\"590.13\"]",
            "590.12 for nvidia.driver-versions, the policy accepts 590.13",
        ),
        (
            "vbios-versions = []",
            "96.00.a5.00.01 for nvidia.vbios-versions, the policy accepts none",
        ),
        (
            "modes = [\"multiple-pass-through\"]",
            "single-pass-through for nvidia.modes, the policy accepts multiple-pass-through",
        ),
    ] {
        let refused = judge_gpus(section, gpu_claims(&[1, 2], Reference::Matched));
        assert_eq!(refused.unwrap_err(), format!("the evidence has {said}"));
    }
}

#[test]
fn pinned_gpus_are_accepted_and_others_are_not() {
    for (reference, pinned) in [(Reference::Matched, 0), (Reference::None, 1)] {
        let seen = gpu_claims(&[1, 2], reference);
        let Platform::Nvidia(platform) = seen.platform() else {
            unreachable!()
        };
        let section = toml::to_string(&super::NvidiaPolicy::pin(platform)).unwrap();
        assert_eq!(
            section.matches("[measurements]").count(),
            pinned,
            "{section}"
        );
        let accept = super::NvidiaPolicy::pin(platform);
        assert_eq!(accept.judge(platform), Ok(()));
        let fewer = gpu_claims(&[1], reference);
        let Platform::Nvidia(fewer) = fewer.platform() else {
            unreachable!()
        };
        assert!(accept.judge(fewer).is_err());
    }
}
