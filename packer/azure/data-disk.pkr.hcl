# A snapshot of a baked data disk on Azure, and a managed image that has it on LUN 0, for scale sets and machines you run yourself.
# AKS takes neither a custom node image nor a data disk for its nodes; there, use Artifact Streaming.
#
#   builder bake disk data.img --target azure-data --oci REPOSITORY:TAG=layout/ --size 120GiB
#   packer init packer/azure/data-disk.pkr.hcl
#   packer build -var-file data.img.auto.pkrvars.json -var resource_group=GROUP -var location=westeurope \
#     packer/azure/data-disk.pkr.hcl
#
# The login is the one of `az login`. An ordinary machine gets an empty data disk, writes the baked one onto it, and is captured.
# Lines between "packer >= 1.8" and "end" use arguments that Packer 1.6 lacks.

# packer >= 1.8
packer {
  required_version = ">= 1.8.0"
  required_plugins {
    azure = {
      source  = "github.com/hashicorp/azure"
      version = ">= 2.0.0"
    }
  }
}
# end

variable "resource_group" {
  type = string
}

variable "location" {
  type = string
}

variable "name" {
  type = string
}

variable "image_name" {
  type        = string
  description = "Of the managed image and, as a prefix, of the snapshot: letters, digits and underscores."
}

variable "disk_file" {
  type        = string
  description = "The raw disk that builder bake made; DISK.setup.sh lies beside it."
}

variable "volume_size" {
  type        = number
  description = "GiB; the size of the disk."
}

variable "builder_size" {
  type        = number
  default     = 64
  description = "GiB of the machine's own disk; holds the archive and the sparse disk."
}

variable "content_sha256" {
  type = string
}

variable "machine_type" {
  type    = string
  default = "Standard_D4s_v5"
}

variable "image_sku" {
  type    = string
  default = "12-gen2"
}

source "azure-arm" "disk" {
  use_azure_cli_auth                      = true
  location                                = var.location
  vm_size                                 = var.machine_type
  os_type                                 = "Linux"
  image_publisher                         = "Debian"
  image_offer                             = "debian-12"
  image_sku                               = var.image_sku
  os_disk_size_gb                         = var.builder_size
  disk_additional_size                    = [var.volume_size]
  managed_image_resource_group_name       = var.resource_group
  managed_image_name                      = var.image_name
  managed_image_data_disk_snapshot_prefix = var.image_name
  azure_tags = {
    builder-name           = var.name
    builder-content-sha256 = var.content_sha256
  }
}

build {
  sources = ["source.azure-arm.disk"]

  provisioner "shell-local" {
    inline = ["tar --create --sparse --zstd --file '${var.disk_file}.tar.zst' --directory \"$(dirname '${var.disk_file}')\" \"$(basename '${var.disk_file}')\""]
  }

  provisioner "file" {
    source      = "${var.disk_file}.tar.zst"
    destination = "/var/tmp/disk.tar.zst"
    generated   = true # made by the step before, so not there when the template is validated
  }

  provisioner "shell" {
    script           = "${path.root}/../write-disk.sh"
    environment_vars = ["DEVICE=/dev/disk/azure/scsi1/lun0"]
    execute_command  = "sudo env {{ .Vars }} sh '{{ .Path }}'"
  }

  provisioner "shell" {
    script           = "${var.disk_file}.setup.sh"
    environment_vars = ["START=no"]
    execute_command  = "sudo env {{ .Vars }} sh '{{ .Path }}'"
  }

  # A managed image is of a generalised machine: no user, no key, no host name.
  provisioner "shell" {
    inline          = ["rm -rf /var/tmp/disk /var/tmp/disk.tar.zst", "waagent -force -deprovision+user", "sync"]
    execute_command = "sudo env {{ .Vars }} sh '{{ .Path }}'"
  }
}
