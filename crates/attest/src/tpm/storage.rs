//! The small storage inside a TPM: indexes that hold some bytes each ("TPM 2.0 Library",
//! part 3, section 31), of whoever owns the machine.

use tpm2_protocol::basic::{TpmBuffer, TpmHandle, TpmUint16};
use tpm2_protocol::constant::MAX_NV_BUFFER_SIZE;
use tpm2_protocol::data::{Tpm2bNvPublic, TpmAlgId, TpmaNv, TpmsNvPublic};
use tpm2_protocol::frame::{
    TpmNvDefineSpaceCommand, TpmNvDefineSpaceResponse, TpmNvReadCommand, TpmNvReadPublicCommand,
    TpmNvReadPublicResponse, TpmNvReadResponse, TpmNvWriteCommand, TpmNvWriteResponse,
};

use super::device::{Device, protocol};
use crate::CollectError;

/// Whose indexes are used, `TPM_RH_OWNER`.
const OWNER: u32 = 0x4000_0001;

impl Device {
    /// Reads a whole index.
    pub(crate) fn read_index(&mut self, index: u32) -> Result<Vec<u8>, CollectError> {
        let index = TpmHandle::new(index);
        let public: TpmNvReadPublicResponse =
            self.run(&TpmNvReadPublicCommand { handles: [index] })?;
        let size = usize::from(u16::from(public.nv_public.data_size));
        let mut bytes = Vec::new();
        while bytes.len() < size {
            let part = (size - bytes.len()).min(MAX_NV_BUFFER_SIZE);
            let read: TpmNvReadResponse = self.run_authorized(&TpmNvReadCommand {
                handles: [TpmHandle::new(OWNER), index],
                size: TpmUint16::new(part as u16),
                offset: TpmUint16::new(bytes.len() as u16),
            })?;
            if read.data.is_empty() {
                return Err(self.failed(std::io::Error::other("an index ends before it should")));
            }
            bytes.extend(read.data.iter());
        }
        Ok(bytes)
    }

    /// Writes an index, which is made if there is none.
    pub(crate) fn write_index(&mut self, index: u32, bytes: &[u8]) -> Result<(), CollectError> {
        let index = TpmHandle::new(index);
        let known: Result<TpmNvReadPublicResponse, _> =
            self.run(&TpmNvReadPublicCommand { handles: [index] });
        if known.is_err() {
            let _: TpmNvDefineSpaceResponse = self.run_authorized(&TpmNvDefineSpaceCommand {
                handles: [TpmHandle::new(OWNER)],
                auth: TpmBuffer::new(),
                public_info: Tpm2bNvPublic::from(TpmsNvPublic {
                    nv_index: index,
                    name_alg: TpmAlgId::Sha256,
                    attributes: TpmaNv::OWNERWRITE | TpmaNv::OWNERREAD,
                    auth_policy: TpmBuffer::new(),
                    data_size: TpmUint16::new(bytes.len() as u16),
                }),
            })?;
        }
        for (part, offset) in bytes
            .chunks(MAX_NV_BUFFER_SIZE)
            .zip((0..).step_by(MAX_NV_BUFFER_SIZE))
        {
            let _: TpmNvWriteResponse = self.run_authorized(&TpmNvWriteCommand {
                handles: [TpmHandle::new(OWNER), index],
                data: TpmBuffer::try_from(part).map_err(|error| self.failed(protocol(&error)))?,
                offset: TpmUint16::new(offset),
            })?;
        }
        Ok(())
    }
}
